"""What this wheel brings to sage-infer: the commands ``sage infer hal …``. Imports nothing of the drawing."""

from sage_infer import CommandSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_GROUP = "Hardware: what this machine, or a recorded one, has and how it is wired."
_COMMANDS = {
    "plot": "Draw the machine as SVG.",
    "profile": "Every figure with its source; the profile as JSON.",
    "show": "Devices, links and memory tiers.",
}


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(path=f"infer hal {name}", app=f"sage_infer_hal.cli:{name}", summary=summary, group=_GROUP)
        for name, summary in _COMMANDS.items()
    ]
