"""``sage infer plugin …``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sage_infer.cli.output import AsJson, note, print_json, print_table

__all__ = ["KindOption", "list_", "parse_kind", "show"]

KindOption = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="backend, detector, store, format, transport, executor, model, command or config.",
    ),
]


def parse_kind(kind: str | None) -> Any:
    """The kind named by a flag.

    Raises:
        InvalidRequest: the kind is unknown.
    """
    from sage_infer.discovery import KINDS
    from sage_infer.errors import InvalidRequest

    if kind is not None and kind not in KINDS:
        raise InvalidRequest(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def list_(
    kind: KindOption = None,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print tracebacks of broken plug-ins.")
    ] = False,
) -> None:
    """List the contents of all plug-ins, of every kind, with their state. No engine is imported."""
    from sage_infer.plugins import list_plugins

    rows = list_plugins(parse_kind(kind))
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    if not rows:
        note("no plug-in provides this kind" if kind else "no plug-in is installed")
        return
    print_table(
        ("KIND", "NAME", "STATE", "FROM", "SUMMARY"),
        [
            (row.kind, row.name, row.state, row.plugin.distribution, row.reason or row.as_dict()["summary"])
            for row in rows
        ],
    )
    for row in rows:
        if row.fix:
            print(f"\nto fix {row.kind} {row.name}: {row.fix}")
        if verbose and row.detail:
            print(f"\n{row.name}:\n{row.detail.rstrip()}")


def show(
    name: Annotated[str, typer.Argument(help="Name of the item, or of a plug-in that failed.")],
    kind: KindOption = None,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the traceback of a broken one.")
    ] = False,
) -> None:
    """Show one item of a plug-in in detail. Its dotted paths are checked; no engine is imported."""
    from sage_infer.discovery.distributions import describe_distribution
    from sage_infer.discovery.paths import dotted_paths
    from sage_infer.plugins import find_plugin

    info = find_plugin(name, parse_kind(kind))
    data: dict[str, Any] = info.as_dict()
    data["distribution"] = describe_distribution(info.plugin.distribution)
    data["paths"] = dotted_paths(info.spec) if info.spec is not None else {}
    spec = info.spec
    data["details"] = {
        field: sorted(value) if isinstance(value, frozenset) else value
        for field in ("serves", "hardware", "schemes", "format_ids", "requires", "options", "limits")
        if (value := getattr(spec, field, None))
    }
    if as_json:
        print_json(data)
        return
    dist = data["distribution"]
    lines = [
        ("kind", info.kind), ("name", info.name), ("state", info.state), ("reason", info.reason),
        ("to fix", info.fix), ("summary", data["summary"]),
        ("from", f"{dist['name']} {dist['version']}" + (" (editable)" if dist["editable"] else "")),
        ("at", dist["location"]), ("plug-in", info.plugin.location),
    ]  # fmt: skip
    lines += [("missing", str(missing)) for missing in info.missing]
    lines += list(data["paths"].items())
    for field, value in data["details"].items():
        if isinstance(value, list | tuple):
            lines.append((field, ", ".join(map(str, value))))
        else:
            lines += [(field, f"{key} {text}") for key, text in value.items()]
    for label, text in lines:
        if text:
            print(f"{label:<16}{text}")
    if verbose and info.detail:
        print(f"\n{info.detail.rstrip()}")
