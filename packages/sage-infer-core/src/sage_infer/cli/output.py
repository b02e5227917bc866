"""Output of commands: JSON for programs, aligned tables and progress for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "loading", "note", "print_json", "print_table", "progress_bar"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_COLOURS = {
    "ready": "32", "ok": "32", "missing-requirement": "33", "no-hardware": "33", "not-added": "33",
    "incompatible": "31", "broken": "31",
}  # fmt: skip


def print_json(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Print a message for people to standard error, separate from the command's output."""
    print(text, file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns; the last one fills the line. Plain text, so that listing stays fast."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for index, row in enumerate([columns, *rows]):
        cells = []
        for cell, width in zip(row, widths, strict=True):
            padded = cell.ljust(width)
            if colour and index == 0:
                padded = f"\x1b[1m{padded}\x1b[0m"
            elif colour and cell in _COLOURS:
                padded = f"\x1b[{_COLOURS[cell]}m{padded}\x1b[0m"
            cells.append(padded)
        print("  ".join(cells).rstrip())


@contextmanager
def loading(model: str, backend: str) -> Iterator[Callable[[str, float | None], None]]:
    """Yield ``report(stage, share)`` for the loading of a model.

    On a terminal it shows a progress bar on stderr, without a percentage while the share is unknown; elsewhere it
    prints one line.
    """
    text = f"loading {model} on {backend}"
    if not sys.stderr.isatty():
        note(f"{text} …")
        yield lambda stage, share: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(text), total=None)

        def report(stage: str, share: float | None) -> None:
            total = None if share is None else 1.0
            progress.update(task, description=escape(f"{text}: {stage}"), total=total, completed=share or 0.0)

        yield report


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Yield ``report(stage, share)``: one bar per stage on a terminal's stderr, one line per stage elsewhere.

    The share is None if it is unknown.
    """
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def report_line(stage: str, share: float | None) -> None:
            if stage not in stages:
                stages.add(stage)
                note(f"{stage} …")

        yield report_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def report_bar(stage: str, share: float | None) -> None:
            if stage not in tasks:
                for other in tasks.values():
                    progress.update(other, total=1.0, completed=1.0)
                tasks[stage] = progress.add_task(stage, total=None)
            if share is not None:
                progress.update(tasks[stage], total=1.0, completed=share)

        yield report_bar
        for task in tasks.values():
            progress.update(task, total=1.0, completed=1.0)
