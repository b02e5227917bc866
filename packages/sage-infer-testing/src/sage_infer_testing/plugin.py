"""What this wheel plugs into sage-infer: the command ``sage infer backend test``."""

from sage_infer import CommandSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            path="infer backend test",
            app="sage_infer_testing.cli:test",
            summary="Run the contract kit against an installed backend",
        )
    ]
