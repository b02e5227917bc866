"""Report for people: a live progress line, then a table, advice for failures, and totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sage_infer_testing.results import ContractReport, Outcome, TestResult

__all__ = ["live", "print_report"]

_STYLES: Mapping[Outcome, str] = {
    "passed": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "xfailed": "yellow",
}
_WIDTH = 140  # of a table that is not printed to a terminal


@contextmanager
def live(title: str, console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show events as a progress line on a terminal; elsewhere print only one line at the start."""
    if not console.is_terminal:
        console.print(f"{escape(title)} …", highlight=False)
        yield lambda event: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(title), total=None)

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "collected":
                progress.update(task, total=event["count"])
            elif event["event"] == "started":
                progress.update(task, description=escape(event["name"]))
            elif event["event"] == "finished":
                progress.advance(task)
                if event["outcome"] == "failed":
                    progress.console.print(
                        f"[red]failed[/red] {event['suite']}::{event['name']}", highlight=False
                    )

        yield show


def print_report(report: ContractReport, console: Console | None = None) -> None:
    """Print the table, each failure with its advice, and the totals."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    table = Table(
        title=escape(report.backend) + (f" with {escape(report.model)}" if report.model else ""),
        title_justify="left",
        box=None,
    )
    table.add_column("test", no_wrap=True)
    table.add_column("outcome")
    table.add_column("time", justify="right")
    table.add_column("why", overflow="fold")
    suite = ""
    for result in report.results:
        if result.suite != suite:
            suite = result.suite
            table.add_row(f"[bold]{escape(suite)}[/bold]")
        style = _STYLES[result.outcome]
        time = f"{result.seconds:.2f} s"
        table.add_row(
            f"  {escape(_plain(result.name))}", f"[{style}]{result.outcome}[/{style}]", time, _why(result)
        )
    console.print(table)
    for result in report.results:
        if result.outcome == "failed":
            _print_failure(result, console)
    console.print(_totals(report), highlight=False)


def _plain(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _why(result: TestResult) -> str:
    return escape(result.reason) if result.outcome != "passed" else ""


def _print_failure(result: TestResult, console: Console) -> None:
    console.print(f"\n[bold red]failed[/bold red] {result.suite}::{escape(result.name)}", highlight=False)
    for label, text in (("asserts", result.summary), ("got", result.reason), ("how to fix", result.advice)):
        if text:
            console.print(f"  [bold]{label}:[/bold] {escape(text)}", highlight=False)


def _totals(report: ContractReport) -> str:
    parts = [
        f"[{style}]{count} {outcome}[/{style}]"
        for outcome, style in _STYLES.items()
        if (count := report.counts[outcome])
    ]
    if report.not_run:
        parts.append(f"[bold red]{report.not_run} not run[/bold red]")
    seconds = sum(result.seconds for result in report.results)
    return f"\n{', '.join(parts)} in {seconds:.1f} s"
