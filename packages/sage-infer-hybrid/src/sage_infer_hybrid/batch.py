"""Embedding and reranking of a hybrid instance: time slices while streams are live, deadlines, and abort."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, evolve
from sage_infer.compat import uncancel
from sage_infer.contracts import TextLike, Truncation, as_texts, check_texts
from sage_infer.errors import InvalidRequest, RequestCancelled
from sage_infer.schemas import EmbeddingResult, RequestOptions, RerankResult

from sage_infer_hybrid.host import ModelHost
from sage_infer_hybrid.loaded import LoadedModel
from sage_infer_hybrid.options import forwarded
from sage_infer_hybrid.sharing import ComputeSharing, in_time
from sage_infer_hybrid.slices import merge_embeddings, merge_hits

__all__ = ["BatchWork"]


@define(eq=False)
class _Call:
    task: asyncio.Task[Any] | None
    aborted: bool = False


class BatchWork:
    """Runs ``embed`` and ``rerank`` on the models of ``host``."""

    def __init__(self, host: ModelHost, sharing: ComputeSharing) -> None:
        self._host, self._sharing = host, sharing
        self._open: dict[str, _Call] = {}

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        model: str | None,
        truncate: Truncation,
        request_id: str | None,
        options: RequestOptions | None,
    ) -> EmbeddingResult:
        deadline = None if options is None else options.deadline
        async with self._call(request_id, deadline):
            loaded = await self._host.ready(model, ("embedding",))
            several = as_texts(texts)
            check_texts(several, truncate)
            arguments = _Arguments(loaded, request_id, options)
            with self._host.call(loaded) as backend:

                async def whole(some: Sequence[TextLike]) -> EmbeddingResult:
                    result: EmbeddingResult = await backend.embed_batch(
                        some, truncate=truncate, **arguments.next()
                    )
                    return result

                if not several:
                    return await whole(several)
                try:
                    parts = await self._sharing.run(loaded, several, whole, deadline=deadline)
                except InvalidRequest:
                    return await whole(several)  # indices in errors then match the caller's texts
                return merge_embeddings(parts)

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None,
        top_n: int | None,
        request_id: str | None,
        options: RequestOptions | None,
    ) -> RerankResult:
        deadline = None if options is None else options.deadline
        async with self._call(request_id, deadline):
            loaded = await self._host.ready(model, ("reranker",))
            arguments = _Arguments(loaded, request_id, options)
            with self._host.call(loaded) as backend:

                async def whole(some: Sequence[str]) -> RerankResult:
                    result: RerankResult = await backend.rerank(query, some, **arguments.next())
                    return result

                if isinstance(documents, str) or not documents or top_n is not None:
                    # Without documents, the backend only validates the arguments.
                    checked: RerankResult = await backend.rerank(
                        query, documents[:0], top_n=top_n, **arguments.next()
                    )
                    if not documents:
                        return checked
                try:
                    parts = await self._sharing.run(
                        loaded, documents, whole, each=len(query), deadline=deadline
                    )
                except InvalidRequest:
                    parts = [await whole(documents)]  # indices in errors then match the caller's documents
                return merge_hits(parts, [len(part.hits) for part in parts], top_n)

    def abort(self, request_id: str) -> None:
        """End the call of this id with ``RequestCancelled``; unknown ids are ignored."""
        call = self._open.get(request_id)
        if call is not None and call.task is not None and not call.aborted:
            call.aborted = True
            call.task.cancel()

    @asynccontextmanager
    async def _call(self, request_id: str | None, deadline: float | None) -> AsyncIterator[None]:
        """A call that ends at its deadline, or by ``abort`` if it has an id."""
        if request_id is None:
            async with in_time(deadline):
                yield
            return
        if request_id in self._open:
            raise InvalidRequest(f"request id {request_id!r} is in use; ids of open requests must be unique")
        call = self._open[request_id] = _Call(asyncio.current_task())
        try:
            async with in_time(deadline):
                yield
        except asyncio.CancelledError:
            if not call.aborted or call.task is None or uncancel(call.task) > 0:
                raise
            raise RequestCancelled(f"request {request_id} was aborted") from None
        finally:
            del self._open[request_id]


class _Arguments:
    """Additional arguments for the backend calls of one request, which may be several."""

    def __init__(self, loaded: LoadedModel, request_id: str | None, options: RequestOptions | None) -> None:
        # This instance enforces the deadline for the whole call.
        rest = None if options is None else evolve(options, deadline=None)
        self._options = forwarded(loaded.features, rest)
        self._request_id, self._count = request_id, itertools.count()

    def next(self) -> dict[str, Any]:
        part = None if self._request_id is None else f"{self._request_id}/{next(self._count)}"
        return {"request_id": part, "options": self._options}
