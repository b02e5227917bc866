"""``sage infer config …``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_infer.cli.output import AsJson, note, print_json, print_table

__all__ = ["init", "show", "validate"]


def show(as_json: AsJson = False) -> None:
    """Show the values in effect and their origins: default, file, environment or flag."""
    from sage_infer.config import load_config

    loaded = load_config()
    rows = loaded.rows()
    if as_json:
        values = [{"key": key, "value": value, "origin": origin} for key, value, origin in rows]
        print_json({"file": _file(loaded.path), "values": values, "warnings": list(loaded.warnings)})
        return
    print_table(("KEY", "VALUE", "FROM"), [(key, _text(value), origin) for key, value, origin in rows])
    if loaded.path is None:
        note("no configuration file; `sage infer config init` writes one")
    for warning in loaded.warnings:
        note(f"warning: {warning}")


def validate(
    file: Annotated[Path | None, typer.Argument(help="The file; default: the file in effect.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration file and report every problem with its line."""
    from sage_infer.config import load_config

    loaded = load_config(file)
    if as_json:
        print_json({"valid": True, "file": _file(loaded.path)})
    elif loaded.path is None:
        print("no configuration file; the defaults and the environment are valid")
    else:
        print(f"{loaded.path} is valid")
    for warning in loaded.warnings:
        note(f"warning: {warning}")


def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("sage_infer.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a configuration file with every key explained."""
    from sage_infer.config import write_template

    write_template(file, force=force)
    print(f"wrote {file}")


def _file(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
