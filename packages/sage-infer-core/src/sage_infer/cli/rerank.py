"""``sage infer rerank``"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.embed import short
from sage_infer.cli.options import Backend, BackendOptions, QuantProfile, parse_options, read_texts
from sage_infer.cli.output import AsJson, loading, print_json, print_table

if TYPE_CHECKING:
    from sage_infer.schemas import RerankResult

__all__ = ["rerank"]


def rerank(
    query: Annotated[str, typer.Argument(help="The query to rank documents by.")],
    documents: Annotated[
        list[str] | None, typer.Argument(help="Documents; - reads them from standard input, one per line.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A reranker; any form as for embed.")
    ] = None,
    backend: Backend = None,
    top_n: Annotated[int | None, typer.Option("--top-n", "-n", min=1, help="Show only the best N.")] = None,
    quant_profile: QuantProfile = None,
    options: BackendOptions = None,
    as_json: AsJson = False,
) -> None:
    """Sort documents by relevance to a query, best first."""
    from sage_infer.config import load_config
    from sage_infer.errors import InvalidRequest

    if model is None:
        raise InvalidRequest("no reranker set; name one with --model (a cross-encoder's folder or hub id)")
    lines = read_texts(documents, "document")
    flags = {"inference.embedding_backend": backend}
    settings = load_config(flags=flags, flag_names={"inference.embedding_backend": "--backend"}).config
    engine = settings.inference.embedding_backend
    arguments = parse_options(options) | ({} if quant_profile is None else {"quant_profile": quant_profile})
    result = asyncio.run(_rerank(query, lines, model, engine, top_n, arguments))
    if as_json:
        from sage_infer.schemas.codec import to_dict

        print_json({"backend": engine, **to_dict(result)})
    else:
        rows = [[f"{hit.score:.4f}", f"[{hit.index}]", short(lines[hit.index], 80)] for hit in result.hits]
        print_table(["SCORE", "", "DOCUMENT"], rows)


async def _rerank(
    query: str, documents: list[str], model: str, backend: str, top_n: int | None, options: dict[str, Any]
) -> RerankResult:
    from contextlib import AsyncExitStack

    from sage_infer.backends import open_backend

    async with AsyncExitStack() as stack:
        with loading(model, backend) as progress:
            engine = await stack.enter_async_context(
                open_backend(backend, model=model, serves="reranker", on_progress=progress, **options)
            )
        return await engine.rerank(query, documents, top_n=top_n)
