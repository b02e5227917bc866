"""``sage infer backend test`` and ``sage infer plugin test``"""

# ruff: noqa: PT028 - the function is a command named test, not a test

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sage_infer.cli.options import BackendOptions, Model, parse_options
from sage_infer.cli.output import AsJson, print_json
from sage_infer.cli.plugin import KindOption, parse_kind

if TYPE_CHECKING:
    from sage_infer_testing.target import Target

__all__ = ["test", "test_plugin"]


def test(
    name: Annotated[str, typer.Argument(help="Name of the backend.")],
    model: Model = None,
    option: BackendOptions = None,
    select: Annotated[
        str, typer.Option("-k", metavar="EXPR", help="Run only matching tests, as with pytest -k.")
    ] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE for the kit, such as exact_batch_invariance=false."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print pytest's report of each failure.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the contract kit for an installed backend. Exits with 0 if no test failed."""
    from sage_infer_testing.target import find_targets

    target = find_targets(name, model, parse_options(option), parse_options(setting))
    _run(target, select, junit, details, as_json)


def test_plugin(
    name: Annotated[str, typer.Argument(help="Name of a backend, detector, store, transport, …")],
    kind: KindOption = None,
    model: Model = None,
    option: BackendOptions = None,
    select: Annotated[
        str, typer.Option("-k", metavar="EXPR", help="Run only matching tests, as with pytest -k.")
    ] = "",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for the kit, such as lossless=false.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print pytest's report of each failure.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the contract kit for an installed item of any kind. Exits with 0 if no test failed."""
    from sage_infer.plugins import find_plugin, require_ready

    from sage_infer_testing.target import find_part, find_targets

    info = find_plugin(name, parse_kind(kind))
    require_ready(info)
    options, settings = parse_options(option), parse_options(setting)
    if info.kind == "backend" or info.kind == "plugin":
        target = find_targets(name, model, options, settings)
    else:
        target = find_part(name, info.kind, model, options, settings)
    _run(target, select, junit, details, as_json)


def _run(target: Target, select: str, junit: Path | None, details: bool, as_json: bool) -> None:
    from rich.console import Console

    from sage_infer_testing.runner import run_contract
    from sage_infer_testing.table import live, print_report

    with live(f"testing {target.backend}", Console(stderr=True)) as listener:
        report = run_contract(target, select=select, junit=junit, listener=listener)
    if as_json:
        print_json(report.as_dict())
    else:
        if details:
            for result in report.results:
                if result.details:
                    print(f"{result.suite}::{result.name}\n{result.details}\n")
        print_report(report)
    if not report.ok:
        raise typer.Exit(1)
