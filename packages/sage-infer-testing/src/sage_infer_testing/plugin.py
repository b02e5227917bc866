"""Plug-in module of this wheel: the commands ``sage infer backend test`` and ``sage infer plugin test``."""

from sage_infer import CommandSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            path="infer backend test",
            app="sage_infer_testing.cli:test",
            summary="Run the contract kit for an installed backend",
        ),
        CommandSpec(
            path="infer plugin test",
            app="sage_infer_testing.cli:test_plugin",
            summary="Run the contract kit for an installed item of any kind",
        ),
    ]
