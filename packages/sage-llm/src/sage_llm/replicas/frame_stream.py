"""The consumer's side of a stream that arrives in frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import TokenDelta

__all__ = ["FrameStream"]


class FrameStream(BufferedTokenStream):
    """A stream that reports to ``on_read(count)`` how many deltas its consumer has read, in batches."""

    def __init__(
        self, request_id: str, on_cancel: Callable[[], None], on_read: Callable[[int], None], batch: int
    ) -> None:
        super().__init__(request_id, on_cancel)
        self._on_read, self._batch, self._read = on_read, batch, 0

    def on_delta(self, take: Callable[[TokenDelta], bool]) -> None:
        def counted(delta: TokenDelta) -> bool:
            if not take(delta):
                return False
            self.count()
            return True

        super().on_delta(counted)

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return _Reading(self, super().__aiter__())

    def count(self) -> None:
        """Count one delta as read."""
        self._read += 1
        if self._read >= self._batch:
            self._on_read(self._read)
            self._read = 0


class _Reading:
    """One ``async for`` loop. It owns the inner iteration, so its deletion cancels the stream as usual."""

    __slots__ = ("_inner", "_stream")

    def __init__(self, stream: FrameStream, inner: AsyncIterator[TokenDelta]) -> None:
        self._stream, self._inner = stream, inner

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        delta = await self._inner.__anext__()
        self._stream.count()
        return delta
