"""Calls of the pooling runner: several texts that succeed, fail and are cancelled together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sage_infer.errors import SageInferError

__all__ = ["PoolingCall"]

TextT = TypeVar("TextT")


class PoolingCall:
    """One open call.

    Attributes:
        request_id: the call's id.
        texts: number of texts without a result.
        tokens: number of tokens of those texts.
        started: when the call began, in seconds of ``time.perf_counter``.
        begun: whether its texts were submitted to the engine.
    """

    def __init__(self, request_id: str, texts: int) -> None:
        self.request_id = request_id
        self.texts = texts
        self.tokens = 0
        self.started = time.perf_counter()
        self.begun = False
        self._work: asyncio.Future[Any] | None = None
        self._error: SageInferError | None = None

    def stop(self, error: SageInferError) -> None:
        """End the call with an error, and remove its texts from the engine."""
        if self._error is None:
            self._error = error
            if self._work is not None:
                self._work.cancel()

    async def run(
        self,
        texts: Sequence[TextT],
        tokens: Callable[[TextT], int],
        compute: Callable[[int, TextT], Awaitable[Any]],
        *,
        concurrency: int,
    ) -> list[Any]:
        """Results of ``compute(index, text)`` for every text, in order; the first error cancels the others.

        Args:
            tokens: returns a text's length.
            concurrency: maximum texts in the engine simultaneously.
        """
        slots = asyncio.Semaphore(concurrency)
        self.begun, self.tokens = True, sum(map(tokens, texts))

        async def one(index: int, text: TextT) -> Any:
            async with slots:
                result = await compute(index, text)
            self.texts -= 1
            self.tokens -= tokens(text)
            return result

        tasks = [asyncio.ensure_future(one(index, text)) for index, text in enumerate(texts)]
        self._work = asyncio.gather(*tasks)
        if self._error is not None:  # stopped during tokenization
            self._work.cancel()
        try:
            return list(await self._work)
        except asyncio.CancelledError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
