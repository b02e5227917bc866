"""``sage infer key add``, ``list`` and ``remove``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json, print_table

__all__ = ["add", "list_", "remove"]

Name = Annotated[str, typer.Argument(help="Name of the key, for logs and for taking it back.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Keys file; `serve.keys_file` of the configuration otherwise."),
]


def add(
    name: Name,
    file: File = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens a minute, in and out.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is printed once; the file keeps its digest only."""
    from sage_infer_serve.http.auth import KeyLimits, add_key

    path = _path(file)
    limits = KeyLimits(
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
    )
    key = add_key(path, name, limits)
    if as_json:
        print_json({"name": name, "key": key, "file": str(path)})
    else:
        print(key)
        note(f"written to {path} as a digest; this is the only time that the key is shown")


def list_(file: File = None, as_json: AsJson = False) -> None:
    """List API keys by name, with their limits."""
    from attrs import asdict

    from sage_infer_serve.http.auth import KeyLimits, read_keys

    keys = read_keys(_path(file))
    if as_json:
        print_json([{"name": key.name, **asdict(key.limits)} for key in keys])
        return
    names = list(asdict(KeyLimits()))
    rows = [[key.name, *(str(asdict(key.limits)[n] or "-") for n in names)] for key in keys]
    print_table(["NAME", *(n.replace("_", " ").upper() for n in names)], rows)


def remove(name: Name, file: File = None) -> None:
    """Take an API key back. A running server has to be started again."""
    from sage_infer_serve.http.auth import remove_key

    path = _path(file)
    remove_key(path, name)
    note(f"removed {name} from {path}")


def _path(file: Path | None) -> Path:
    from sage_infer.config import load_config
    from sage_infer.errors import InvalidRequest

    from sage_infer_serve.config import Serve

    if file is not None:
        return file.expanduser()
    loaded = load_config()
    keys_file = loaded.section(Serve).keys_file
    if keys_file is None:
        raise InvalidRequest(
            "no keys file: name one with --file, or as `serve.keys_file` in the configuration"
        )
    return loaded.path_value("serve.keys_file", keys_file)
