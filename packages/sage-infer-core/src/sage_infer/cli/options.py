"""Options shared by several commands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Backend",
    "BackendOptions",
    "KVSchema",
    "Model",
    "QuantProfile",
    "llm_settings",
    "parse_options",
    "read_file",
    "read_texts",
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A folder, a .gguf file, a name, a Hugging Face id, or modelscope:ID."
    ),
]
Backend = Annotated[str | None, typer.Option("--backend", "-b", help="Backend to use.")]
BackendOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="KEY=VALUE for the backend; repeatable.")
]
KVSchema = Annotated[
    str | None,
    typer.Option(
        "--kv-schema", metavar="PRESET", help="fp16, bf16, fp8, int8 or int4; preset=NAME,page_size=N."
    ),
]


QuantProfile = Annotated[
    Path | None,
    typer.Option("--quant-profile", metavar="FILE", help="Quantization profile, in YAML or JSON."),
]


_ARGUMENTS = ("name", "model", "serves", "on_progress")  # of ``open_backend`` itself


def llm_settings(
    model: str | None,
    backend: str | None,
    kv_schema: str | None,
    quant_profile: Path | None,
    options: Iterable[str] | None,
) -> tuple[str, str, dict[str, Any]]:
    """Model, backend and further arguments of ``open_backend``, from flags, environment, file and defaults.

    A requested KV schema is passed to the backend as its option ``kv_schema``; a backend without this option
    rejects it, so that it is never dropped silently.
    """
    from sage_infer.config import load_config

    flags = {"inference.model": model, "inference.backend": backend, **_parse_kv_schema(kv_schema)}
    names = {"inference.model": "--model", "inference.backend": "--backend"}
    names |= dict.fromkeys(flags.keys() - names.keys(), "--kv-schema")
    flags["inference.quant_profile"] = None if quant_profile is None else str(quant_profile)
    loaded = load_config(flags=flags, flag_names=names)
    config = loaded.config
    wanted = {"preset": config.kv_schema.preset, **config.kv_schema.overrides}
    kv = {key: value for key, value in wanted.items() if value is not None}
    settings = config.inference
    arguments = {**settings.options, **({"kv_schema": kv} if kv else {}), **parse_options(options)}
    if settings.quant_profile is not None:
        arguments["quant_profile"] = loaded.path_value("inference.quant_profile", settings.quant_profile)
    return settings.model, settings.backend, arguments


def _parse_kv_schema(text: str | None) -> dict[str, Any]:
    """``int8`` or ``preset=int8,page_size=32`` as configuration keys."""
    if text is None:
        return {}
    if "=" not in text:
        return {"kv_schema.preset": text}
    return {f"kv_schema.{key}": value for key, value in parse_options(text.split(",")).items()}


def parse_options(options: Iterable[str] | None, flag: str = "--option") -> dict[str, Any]:
    """``key=value`` pairs; values are parsed as JSON if possible, else kept as strings.

    Raises:
        InvalidRequest: an option without ``=``.
    """
    from sage_infer.errors import InvalidRequest

    parsed: dict[str, Any] = {}
    for option in options or ():
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"{flag} must be KEY=VALUE, got {option!r}")
        if key in _ARGUMENTS:
            raise InvalidRequest(
                f"{key!r} is not an option of a backend; see --help for the flag that sets it"
            )
        try:
            parsed[key] = json.loads(text)
        except ValueError:
            parsed[key] = text
    return parsed


def read_texts(texts: list[str] | None, what: str) -> list[str]:
    """The command's texts; ``-`` or no argument reads standard input, one text per line.

    Raises:
        InvalidRequest: there is no text.
    """
    import sys

    from sage_infer.errors import InvalidRequest

    if texts and texts != ["-"]:
        return texts
    lines = [] if not texts and sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InvalidRequest(f"no {what} given; pass one as an argument, or lines on standard input")
    return lines


def read_file(path: Path) -> str:
    """A text file.

    Raises:
        InvalidRequest: it cannot be read.
    """
    from sage_infer.errors import InvalidRequest

    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}") from None
