"""``sage infer backend …``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sage_infer.cli.options import BackendOptions, parse_options
from sage_infer.cli.output import AsJson, note, print_json, print_table

__all__ = ["list_", "show"]


def list_(
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print tracebacks of broken plug-ins.")
    ] = False,
) -> None:
    """List backends with their state. No engine is imported."""
    from sage_infer.discovery import backend_info, discover

    registry = discover()
    rows = backend_info(registry)
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    if registry.disabled:
        note(f"disabled: {', '.join(sorted(registry.disabled))}")
    elif not rows:
        note("no backend is installed; try: pip install sage-infer-openvino")
        return
    print_table(
        ("NAME", "STATE", "SERVES", "HARDWARE", "SUMMARY"),
        [
            (
                row.name,
                row.state,
                ",".join(sorted(row.spec.serves)) if row.spec else "-",
                ",".join(sorted(row.spec.hardware)) if row.spec else "-",
                row.reason or (row.spec.summary if row.spec else ""),
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.fix:
            print(f"\nto fix {row.name}: {row.fix}")
        if verbose and row.detail:
            print(f"\n{row.name}:\n{row.detail.rstrip()}")
    # Backends of one plug-in often lack the same requirements.
    for missing in dict.fromkeys(row.missing for row in rows if row.missing):
        print(f"\nto make {', '.join(row.name for row in rows if row.missing == missing)} ready:")
        for one in missing:
            print(f"  {one.what}: {one.install}")


def show(
    name: Annotated[str, typer.Argument(help="Name of the backend.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Open the backend with this model and show its capability."),
    ] = None,
    options: BackendOptions = None,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the traceback of a broken one.")
    ] = False,
) -> None:
    """Show a backend in detail. The engine is imported only with --model."""
    if options and model is None:
        from sage_infer.errors import InvalidRequest

        raise InvalidRequest("--option configures the backend for a model; name one with --model")
    from sage_infer.backends import find_backend
    from sage_infer.discovery.distributions import describe_distribution

    info = find_backend(name)
    spec = info.spec
    data: dict[str, Any] = info.as_dict()
    data["distribution"] = describe_distribution(info.plugin.distribution)
    if spec is not None:
        data |= {
            "factory": spec.factory,
            "requires": dict(spec.requires),
            "options": dict(spec.options),
            "limits": list(spec.limits),
        }
    opened: dict[str, Any] = {}
    if model is not None:
        from sage_infer.cli.opened import open_and_describe

        opened = open_and_describe(name, model, parse_options(options))
    if as_json:
        print_json({**data, **opened})
        return
    dist = data["distribution"]
    origin = f"{dist['name']} {dist['version']}" + (" (editable)" if dist["editable"] else "")
    lines = [
        ("name", info.name),
        ("state", info.state),
        ("reason", info.reason),
        ("to fix", info.fix),
        ("summary", data["summary"]),
        ("serves", ", ".join(data["serves"])),
        ("hardware", ", ".join(data["hardware"])),
        ("requires", ", ".join(f"{n}{s}" for n, s in data.get("requires", {}).items())),
        ("from", origin),
        ("at", dist["location"]),
        ("origin", dist["origin"]),
        ("plug-in", info.plugin.location),
        ("factory", data.get("factory", "")),
    ]
    for label, text in lines:
        if text:
            print(f"{label:<10}{text}")
    for missing in info.missing:
        print(f"{'missing':<10}{missing}")
    for option, text in data.get("options", {}).items():
        print(f"{'option':<10}{option}: {text}")
    for limit in data.get("limits", []):
        print(f"{'limit':<10}{limit}")
    if opened:
        from sage_infer.cli.opened import summary

        print(f"\nwith model {model}:")
        for label, text in summary(opened):
            print(f"{label:<10}{text}")
    if verbose and info.detail:
        print(f"\n{info.detail.rstrip()}")
