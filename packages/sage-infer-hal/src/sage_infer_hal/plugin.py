"""Plug-in of this wheel: the commands ``sage infer hal …``. Does not import the drawing code."""

from sage_infer import CommandSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_GROUP = "Hardware: devices and links of this machine or of a recorded one."
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
