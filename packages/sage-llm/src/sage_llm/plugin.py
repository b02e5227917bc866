"""Plug-in of this wheel."""

from __future__ import annotations

from sage_infer import ExecutorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_executors() -> list[ExecutorSpec]:
    return [
        ExecutorSpec(
            name="local",
            factory="sage_llm.replicas.local:LocalExecutor",
            summary="replicas in this process or in child processes",
        )
    ]
