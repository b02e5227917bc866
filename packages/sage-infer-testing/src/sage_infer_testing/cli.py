"""``sage infer backend test``"""

# ruff: noqa: PT028 - the function is a command that is called test, and no test

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sage_infer.cli.options import BackendOptions, Model, parse_options
from sage_infer.cli.output import AsJson, print_json

__all__ = ["test"]


def test(
    name: Annotated[str, typer.Argument(help="Name of the backend.")],
    model: Model = None,
    option: BackendOptions = None,
    select: Annotated[
        str, typer.Option("-k", metavar="EXPR", help="Only tests that fit, as in pytest -k.")
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
    """Run the contract kit against an installed backend. Exits with 0 if nothing failed."""
    from rich.console import Console

    from sage_infer_testing.runner import run_contract
    from sage_infer_testing.table import live, print_report
    from sage_infer_testing.target import find_targets

    target = find_targets(name, model, parse_options(option), parse_options(setting))
    with live(f"testing {name}", Console(stderr=True)) as listener:
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
