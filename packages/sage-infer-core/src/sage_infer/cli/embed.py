"""``sage infer embed``"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.options import Backend, BackendOptions, Model, QuantProfile, parse_options, read_texts
from sage_infer.cli.output import AsJson, loading, print_json, print_table

if TYPE_CHECKING:
    from sage_infer.schemas import EmbeddingResult

__all__ = ["embed", "short"]

_SHOWN = 5  # numbers of a vector shown in the table


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; - reads them from standard input.")
    ] = None,
    model: Model = None,
    backend: Backend = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate texts over the limit instead of failing.")
    ] = False,
    quant_profile: QuantProfile = None,
    options: BackendOptions = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts into vectors. Several texts are compared by cosine similarity; --json prints the vectors."""
    from sage_infer.config import load_config

    lines = read_texts(texts, "text")
    flags = {"inference.embedding_model": model, "inference.embedding_backend": backend}
    settings = load_config(
        flags=flags, flag_names=dict(zip(flags, ("--model", "--backend"), strict=True))
    ).config.inference
    arguments = {**settings.embedding_options, **parse_options(options)}
    arguments |= {} if quant_profile is None else {"quant_profile": quant_profile}
    name, engine = settings.embedding_model, settings.embedding_backend
    result = asyncio.run(_embed(lines, name, engine, truncate, arguments))
    if as_json:
        print_json({"backend": engine, **result.as_dict()})
    else:
        _print(lines, result)


async def _embed(
    texts: list[str], model: str, backend: str, truncate: bool, options: dict[str, Any]
) -> EmbeddingResult:
    from contextlib import AsyncExitStack

    from sage_infer.backends import open_backend

    async with AsyncExitStack() as stack:
        with loading(model, backend) as progress:
            engine = await stack.enter_async_context(
                open_backend(backend, model=model, serves="embedding", on_progress=progress, **options)
            )
        return await engine.embed_batch(texts, truncate="end" if truncate else "error")


def _print(texts: list[str], result: EmbeddingResult) -> None:
    vectors = result.vectors
    numbers = [f"[{i}]" for i in range(len(texts))]
    similar = (
        [[f"{_cosine(a, b):.3f}" for b in vectors] for a in vectors]
        if len(texts) > 1
        else [[] for _ in texts]
    )
    heads = [", ".join(f"{x:.4f}" for x in vector[:_SHOWN]) + ", …" for vector in vectors]
    columns = ["", "TEXT", *(numbers if len(texts) > 1 else []), f"VECTOR ({result.dim})"]
    rows = [[n, short(t), *s, h] for n, t, s, h in zip(numbers, texts, similar, heads, strict=True)]
    print_table(columns, rows)


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def short(text: str, width: int = 40) -> str:
    """The text, shortened to fit into a table column."""
    return text if len(text) <= width else text[: width - 1] + "…"
