"""``sage infer plugin new``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json

__all__ = ["new"]


def _kinds(incomplete: str) -> list[str]:
    """Completion of ``--kind``."""
    from sage_infer_testing.scaffold.wheel import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def new(
    name: Annotated[str, typer.Argument(help="Name of the plug-in, such as acme or acme-npu.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            autocompletion=_kinds,
            metavar="KIND",
            help="backend, embedding, detector, kvstore, transport or executor; repeatable.",
        ),
    ] = None,
    vendor: Annotated[
        bool,
        typer.Option(
            "--vendor",
            help="For a hardware vendor: a detector, what the driver requires, and checks for `sage infer doctor`. "
            "Without --kind: a backend and an embedding backend, too.",
        ),
    ] = False,
    into: Annotated[
        Path, typer.Option("--into", metavar="DIR", help="Folder in which the wheel's folder is made.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a complete wheel for a new plug-in: package, skeleton, contract kit, README and CI workflow.

    \b
    Examples:
      sage infer plugin new acme --kind backend
      sage infer plugin new acme --kind kvstore --kind transport --into ~/src
      sage infer plugin new acme-npu --vendor
    """
    from sage_infer_testing.scaffold.wheel import plan_wheel, write_wheel

    wheel = plan_wheel(name, kind or (), is_vendor=vendor, into=into)
    files = write_wheel(wheel)
    steps = [
        f"cd {wheel.folder}",
        "pip install -e '.[test]'",
        "sage infer plugin list",
        "python -m pytest -ra",
    ]
    if as_json:
        print_json({
            "folder": str(wheel.folder), "distribution": wheel.distribution, "package": wheel.package,
            "items": dict(wheel.items), "vendor": wheel.is_vendor, "files": files, "next": steps,
        })  # fmt: skip
        return
    print(wheel.folder)
    for path in files:
        print(f"  {path}")
    note("\nnext: " + "\n      ".join(steps))
