"""Streams that repeat tokens whose text has not been delivered yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

import attrs
from sage_infer.compat import Self
from sage_infer.contracts import TokenStream
from sage_infer.schemas import FinishReason, Timing, TokenDelta, Usage

__all__ = ["Rewound"]


class Rewound:
    """A ``TokenStream`` without the ids of its first ``repeated`` tokens, which the consumer has.

    An engine without ``resume`` is given only the tokens whose text was delivered, and generates the others again.
    """

    def __init__(self, stream: TokenStream, repeated: int) -> None:
        self._stream, self._repeated = stream, repeated

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._stream.finish_reason

    @property
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    def timing(self) -> Timing | None:
        return self._stream.timing

    async def __aiter__(self) -> AsyncIterator[TokenDelta]:
        async for delta in self._stream:
            count = min(self._repeated, len(delta.token_ids))
            self._repeated -= count
            yield attrs.evolve(delta, token_ids=delta.token_ids[count:]) if count else delta

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, trace)

    def cancel(self) -> None:
        self._stream.cancel()
