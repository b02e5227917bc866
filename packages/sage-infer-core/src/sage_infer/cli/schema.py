"""``sage infer schema …``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sage_infer.cli.options import read_file
from sage_infer.cli.output import AsJson, print_json, print_table

__all__ = ["dump", "list_", "validate"]


def list_(as_json: AsJson = False) -> None:
    """List schemas with version and summary."""
    from sage_infer.schemas import all_schemas, schema_version

    rows = [
        (name, schema_version(cls) or "", (cls.__doc__ or "").split("\n")[0])
        for name, cls in all_schemas().items()
    ]
    if as_json:
        print_json([{"name": name, "version": version, "summary": text} for name, version, text in rows])
    else:
        print_table(("NAME", "VERSION", "SUMMARY"), rows)


def dump(
    name: Annotated[str | None, typer.Argument(help="One schema; default: all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder: write one NAME.json per schema there.")
    ] = None,
    as_json: AsJson = True,
) -> None:
    """Print JSON Schema 2020-12: one document, or an object of all documents by name."""
    from sage_infer.schemas.json_schema import json_schema, json_schemas

    documents = json_schemas() if name is None else {name: json_schema(_schema(name))}
    if output is None:
        print_json(documents if name is None else documents[name])
        return
    import json

    output.mkdir(parents=True, exist_ok=True)
    for title, document in documents.items():
        (output / f"{title}.json").write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
    print(f"wrote {len(documents)} schema(s) to {output}")


def validate(
    name: Annotated[str, typer.Argument(help="Name of the schema.")],
    document: Annotated[Path, typer.Argument(help="A JSON file, or - for standard input.")],
    tolerant: Annotated[
        bool, typer.Option("--tolerant", help="Ignore unknown keys, as nodes do between each other.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a JSON document; every problem is one line ``$.path: message``."""
    from sage_infer.errors import SchemaError
    from sage_infer.schemas.codec import from_json

    cls = _schema(name)
    try:
        from_json(_read(document), cls, tolerant=tolerant)
    except SchemaError as error:
        if as_json:
            problems = [{"path": p.path, "message": p.message} for p in error.problems]
            print_json({"valid": False, "problems": problems})
        else:
            for problem in error.problems:
                print(problem, file=sys.stderr)
        raise typer.Exit(SchemaError.exit_code) from None
    if as_json:
        print_json({"valid": True, "problems": []})
    else:
        print(f"{document} is a valid {name}")


def _schema(name: str) -> Any:
    import difflib

    from sage_infer.errors import InvalidRequest
    from sage_infer.schemas import all_schemas

    schemas = all_schemas()
    if name not in schemas:
        near = difflib.get_close_matches(name, schemas, n=1)
        hint = f"did you mean {near[0]}?" if near else "`sage infer schema list` shows all"
        raise InvalidRequest(f"no schema {name!r}; {hint}")
    return schemas[name]


def _read(path: Path) -> str:
    return sys.stdin.read() if str(path) == "-" else read_file(path)
