"""``sage infer key add``, ``list`` and ``remove``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json, print_table

__all__ = ["add", "list_", "remove"]

Name = Annotated[str, typer.Argument(help="Name of the key, for logs and revocation.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Keys file; default: `serve.keys_file` of the configuration."),
]


def add(
    name: Name,
    file: File = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens per minute, in and out.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Concurrent requests.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key. It is printed once; the file stores only its digest."""
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
        note(f"digest written to {path}; the key is shown only this time")


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
    """Revoke an API key. A running server must be restarted."""
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
        raise InvalidRequest("no keys file: set --file, or `serve.keys_file` in the configuration")
    return loaded.path_value("serve.keys_file", keys_file)
