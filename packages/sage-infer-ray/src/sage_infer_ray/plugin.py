"""Plug-in of this wheel. Does not import Ray."""

from sage_infer import ExecutorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_executors() -> list[ExecutorSpec]:
    return [
        ExecutorSpec(
            name="ray",
            factory="sage_infer_ray.executor:RayExecutor",
            requires={"ray": ">=2.48,<3"},
            install="pip install 'sage-infer-ray[ray]'",
            summary="replicas as actors on a Ray cluster",
        )
    ]
