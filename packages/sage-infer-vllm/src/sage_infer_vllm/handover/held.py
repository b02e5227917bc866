"""KV held for ``decode``, by request: decides whether the KV of a state is here. Used in one event loop."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState

from sage_infer_vllm.kv.host_pages import HostPages

__all__ = ["Held", "HeldStates"]


@define(eq=False)
class Held:
    """KV of one request.

    Attributes:
        request_id: the request that prefill ran for.
        tokens: those of the prompt, and the one that prefill chose.
        salt: the cache salt that the prompt was computed with.
        cached_tokens: tokens of the prompt that prefill found in a cache.
        blocks: the engine's blocks; empty for KV that was imported.
        pages: KV that was imported; None for blocks of the engine.
        name: of the hold in the engine, which renames requests.
    """

    request_id: str
    tokens: tuple[int, ...]
    salt: str
    cached_tokens: int
    blocks: tuple[int, ...] = ()
    pages: HostPages | None = None
    name: str = field(factory=lambda: uuid.uuid4().hex)
    timer: asyncio.TimerHandle | None = field(default=None, init=False)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters that make the engine load this KV."""
        return {"resume": self.name} if self.pages is None else {"resume": self.name, "file": self.pages.file}


class HeldStates:
    """Held requests by id; ``release`` is called with the name of each hold that the engine must free."""

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._held: dict[str, Held] = {}

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def blocks(self) -> int:
        """Blocks of the engine that are held; pages of a shared prefix count once."""
        return len({block for held in self for block in held.blocks})

    @property
    def imported_bytes(self) -> int:
        return sum(held.pages.nbytes for held in self if held.pages is not None)

    def check_free(self, request_id: str) -> None:
        """Raises:
        InvalidRequest: a request of this id is held.
        """
        if request_id in self._held:
            raise InvalidRequest(
                f"request id {request_id!r} is in use: its KV is held for decode; ids must be unique"
            )

    def add(self, held: Held, hold_s: float) -> None:
        """Hold until it is taken, dropped, or ``hold_s`` seconds have passed."""
        self._held[held.request_id] = held
        if math.isfinite(hold_s):
            held.timer = asyncio.get_running_loop().call_later(hold_s, self._expire, held)

    def find(self, state: DecodeState) -> Held:
        """The held request that a state describes.

        Raises:
            InvalidRequest: its KV is not here (any more), or is that of other tokens.
        """
        held = self._held.get(state.request_id)
        if held is None:
            raise InvalidRequest(
                f"the KV of request {state.request_id!r} is not held here: it was decoded, freed, or never prefilled"
            )
        if held.tokens != state.prompt_token_ids + state.output_token_ids:
            raise InvalidRequest(
                f"request {state.request_id!r} is held here with other tokens than the state's"
            )
        return held

    def take(self, held: Held) -> None:
        """Hand the KV over to its decode."""
        del self._held[held.request_id]
        if held.timer is not None:
            held.timer.cancel()

    def has(self, held: Held) -> bool:
        return self._held.get(held.request_id) is held

    def drop(self, request_id: str) -> None:
        """Free a held request and its parts (``id/0``, …); unknown ids are ignored."""
        for held in list(self):
            if held.request_id == request_id or held.request_id.startswith(f"{request_id}/"):
                self.take(held)
                self.free(held)

    def free(self, held: Held) -> None:
        """Free KV that nothing holds any more."""
        if held.pages is None:
            self._release(held.name)
        else:
            held.pages.close()

    def close(self) -> None:
        """Forget all holds, because the engine stops; frees imported KV."""
        for held in list(self):
            self.take(held)
            if held.pages is not None:
                held.pages.close()

    def _expire(self, held: Held) -> None:
        if self.has(held):
            self.take(held)
            self.free(held)
