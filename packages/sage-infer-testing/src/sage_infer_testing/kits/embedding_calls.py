"""Calls that embed or rerank: forms of arguments, and early termination."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import pytest
from sage_infer.errors import RequestCancelled
from sage_infer.schemas import RequestOptions

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.options import OptionTests, UnheardOptions, refused_by_name

__all__ = ["EmbeddingCallTests"]

_DOUBLINGS = 8  # of the number of texts, until a call is slow enough to be ended early


class EmbeddingCallTests(OptionTests, kit=True):
    """Tests of the arguments that ``embed``, ``embed_batch`` and ``rerank`` share."""

    texts: ClassVar[Sequence[str]]
    query: ClassVar[str]
    documents: ClassVar[Sequence[str]]
    batch_tolerance: ClassVar[float]

    @when_claimed("embed")
    async def test_embed_takes_one_text_or_a_list(self, backend: Any) -> None:
        """A text, a list of one text, and the token ids of one text return one vector; a list returns one per text.

        How to fix: pass ``texts`` through ``sage_infer.contracts.as_texts`` first.
        """
        several = await backend.embed(list(self.texts))
        assert len(several) == len(self.texts), f"{len(self.texts)} texts returned {len(several)} vectors"
        for one in (self.texts[0], [self.texts[0]], [1, 2, 3], [[1, 2, 3]]):
            result = await backend.embed(one)
            assert len(result) == 1, f"embed({one!r}) returned {len(result)} vectors"
        assert len(await backend.embed([])) == 0, "no texts must return no vectors"

    @when_claimed("embed")
    async def test_a_result_is_a_sequence_of_vectors(self, backend: Any) -> None:
        """``len``, indexing and iteration of a result return float32 vectors of length ``dim``, equal to ``vectors``.

        How to fix: return ``sage_infer.schemas.EmbeddingResult``.
        """
        result = await backend.embed(list(self.texts))
        assert [list(vector) for vector in result] == result.vectors
        assert list(result[-1]) == result.vectors[-1]
        assert all(vector.format == "f" and len(vector) == result.dim for vector in result)

    @when_claimed("embed")
    async def test_batch_size_changes_no_vector(self, backend: Any) -> None:
        """``embed_batch`` returns the same vectors for any ``batch_size``, positional or keyword.

        How to fix: split the texts into batches of at most ``batch_size``, and join the results in order.
        """
        whole = await backend.embed_batch(list(self.texts))
        for result in (
            await backend.embed_batch(list(self.texts), 1),
            await backend.embed_batch(list(self.texts), batch_size=4),
        ):
            assert len(result) == len(whole), f"{len(whole)} texts returned {len(result)} vectors"
            for index, (vector, expected) in enumerate(zip(result.vectors, whole.vectors, strict=True)):
                apart = max(abs(a - b) for a, b in zip(vector, expected, strict=True))
                assert apart <= max(self.batch_tolerance, 1e-6) ** 0.5, f"text {index} is {apart:.2g} off"

    async def ended(self, backend: Any, end: Callable[[str, int], Awaitable[Any]], what: str) -> None:
        """Fail unless a call is ended early; the calls grow until one is slow enough."""
        __tracebackhide__ = True
        texts = list(self.texts)
        for _ in range(_DOUBLINGS):
            texts *= 2
            try:
                await end(self.new_id(), len(texts) // len(self.texts))
            except RequestCancelled as error:
                expected = "caller" if what == "abort" else what
                if error.by != expected:
                    pytest.fail(f"ended by {what}, but the error says {error.by!r}: {error}")
                await self.idle(backend)
                return
        pytest.fail(f"{what} did not end a call of {len(texts)} texts")

    @when_claimed("embed")
    async def test_abort_ends_a_call(self, backend: Any) -> None:
        """``abort(request_id)`` ends a call of ``embed`` with ``RequestCancelled`` by the caller.

        How to fix: keep a table of open calls by id, and check between batches whether a call was aborted.
        """

        async def embed_and_abort(request_id: str, times: int) -> None:
            texts = list(self.texts) * times
            call = asyncio.ensure_future(backend.embed_batch(texts, 1, request_id=request_id))
            await asyncio.sleep(0)
            await backend.abort(request_id)
            await call

        await self.ended(backend, embed_and_abort, "abort")
        await backend.abort("kit-never-was")

    @when_claimed("embed", "deadline")
    async def test_deadline_ends_a_call(self, backend: Any) -> None:
        """A call of ``embed`` that misses its ``deadline`` ends with ``RequestCancelled`` by ``deadline``.

        How to fix: check between batches whether the deadline has passed.
        """

        async def embed_late(request_id: str, times: int) -> None:
            late = RequestOptions(deadline=1e-6)
            await backend.embed_batch(list(self.texts) * times, 1, request_id=request_id, options=late)

        await self.ended(backend, embed_late, "deadline")
        patient = RequestOptions(deadline=10 * self.timeout_s)
        assert len(await backend.embed(list(self.texts), options=patient)) == len(self.texts)

    async def test_every_call_refuses_unknown_options(self, backend: Any) -> None:
        """``embed``, ``embed_batch`` and ``rerank`` all refuse an option of a later version by its name.

        How to fix: call ``sage_infer.sdk.check_claims`` in each.
        """
        supports, unheard = backend.get_capability().supports, UnheardOptions(unheard_of="x")
        calls = []
        if supports("embed"):
            calls += [
                backend.embed(self.texts[0], options=unheard),
                backend.embed_batch(self.texts[:1], options=unheard),
            ]
        if supports("rerank"):
            calls.append(backend.rerank(self.query, self.documents, options=unheard))
        problems = [await refused_by_name(call, "unheard_of") for call in calls]
        assert not any(problems), "; ".join(filter(None, problems))
