"""Plug-in module of this wheel: commands that test backends and plug-ins, and that make new ones."""

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
        CommandSpec(
            path="infer plugin new",
            app="sage_infer_testing.scaffold.cli:new",
            summary="Write a complete wheel for a new plug-in",
        ),
    ]
