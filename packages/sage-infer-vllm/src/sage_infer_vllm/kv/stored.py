"""The scheduler's part of pages that come from, or go to, a KV store. Called in the engine core's one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field
from sage_infer.contracts import next_key

from sage_infer_vllm.kv.arena import Arena, ArenaPlace
from sage_infer_vllm.kv.plan import ArenaCopies

__all__ = ["KEY_BYTES", "StoredPages", "StoredPrompt", "prompt_of"]

KEY_BYTES = 16


@define(eq=False)
class StoredPrompt:
    """What is known of a request's pages before it is scheduled.

    Attributes:
        arena: holds loaded pages, and takes pages to save.
        keys: of the prompt's full pages.
        root: parent of the first page's key.
        extra: input of each page's key besides its tokens.
        first: index of the first page that is loaded.
        slots: of the arena, with the pages from ``first`` on.
        ticket: the pages may come later, under this ticket of the arena; 0 if they do not.
    """

    arena: Arena
    keys: list[bytes]
    root: bytes
    extra: bytes = b""
    first: int = 0
    slots: Sequence[int] = ()
    ticket: int = 0


@define(eq=False)
class _Request:
    """A request in the scheduler."""

    request: Any
    prompt: StoredPrompt
    blocks: list[int] = field(factory=list)
    saved: int | None = None  # pages at the start that are stored, planned, or found in vLLM's cache
    loaded: bool = False  # a second time, after a preemption, it computes: its slots have other pages then


class StoredPages:
    """Plans loads and saves of pages."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._requests: dict[str, _Request] = {}
        self._loads: list[tuple[int, int]] = []
        self._arena: Arena | None = None
        self.step = 1
        """Number of the next step with copies."""

    def arena(self, place: ArenaPlace) -> Arena:
        """The arena of this place; a request names the same one as the last, unless the owner has changed."""
        if self._arena is None or self._arena.place != place:
            self._arena = Arena.open(place)
        return self._arena

    def matched_tokens(self, request: Any, prompt: StoredPrompt, computed: int) -> int:
        """Tokens behind the ``computed`` ones that can be loaded; all but the prompt's last."""
        known = self._requests.get(request.request_id)
        if known is not None and known.loaded:
            return 0
        if prompt.ticket and not prompt.slots:
            prompt.first, prompt.slots = prompt.arena.published(prompt.ticket)
        if request.skip_reading_prefix_cache or not prompt.slots or computed < prompt.first * self._page_size:
            return 0
        end = (prompt.first + len(prompt.slots)) * self._page_size
        return max(min(end, int(request.num_prompt_tokens) - 1) - computed, 0)

    def allocated(
        self, request: Any, prompt: StoredPrompt, blocks: Sequence[int], loaded_tokens: int
    ) -> None:
        """The request's blocks are allocated, and vLLM expects KV of ``loaded_tokens`` in them."""
        self._arena = prompt.arena
        if prompt.ticket:
            prompt.arena.start(prompt.ticket)
        known = self._requests.setdefault(request.request_id, _Request(request, prompt))
        known.blocks = list(blocks)
        if loaded_tokens:
            size, last = self._page_size, prompt.first + len(prompt.slots)
            end = min(last * size, int(request.num_prompt_tokens) - 1)
            first = (end - loaded_tokens) // size
            self._loads += [
                (prompt.slots[page - prompt.first], known.blocks[page]) for page in range(first, last)
            ]
            known.saved = max(known.saved or 0, last)
        known.loaded = True

    def saves(self, step: Any) -> list[tuple[int, int]]:
        """Blocks that a step completes which vLLM has scheduled, and the slots reserved for them."""
        if not self._requests:
            return []
        cached = step.scheduled_cached_reqs
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            known = self._requests.get(name)
            if known is not None and blocks is not None and name not in cached.resumed_req_ids:
                known.blocks += blocks[0]
        computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        found: list[tuple[int, int]] = []
        for name, count in step.num_scheduled_tokens.items():
            if name in self._requests:
                found += self._completed(self._requests[name], computed[name], count)
        return found

    def copies(self, saves: Sequence[tuple[int, int]]) -> ArenaCopies | None:
        """The copies of a step: these saves, and the loads of requests that were allocated for it."""
        loads, self._loads = tuple(self._loads), []
        if self._arena is None or not (loads or saves):
            return None
        copies = ArenaCopies(self._arena.place, self.step, loads, tuple(saves))
        self.step += 1
        return copies

    def finished(self, request: Any) -> None:
        self._requests.pop(request.request_id, None)

    def _completed(self, known: _Request, computed: int, scheduled: int) -> list[tuple[int, int]]:
        """Blocks and slots of the pages that are complete after a step, and were not saved before.

        A page is saved when its tokens are known here: with asynchronous scheduling that is a step later.
        """
        size, keys = self._page_size, known.prompt.keys
        first = computed // size if known.saved is None else known.saved
        last = min((computed + scheduled) // size, int(known.request.num_tokens) // size, len(known.blocks))
        known.saved = max(first, last)
        found = []
        for page in range(first, last):
            while len(keys) <= page:
                at = len(keys) * size
                tokens = known.request.all_token_ids[at : at + size]
                keys.append(next_key(keys[-1] if keys else known.prompt.root, tokens, known.prompt.extra))
            slot = known.prompt.arena.reserve(keys[page])
            if slot is not None:
                found.append((known.blocks[page], slot))
        return found


def prompt_of(params: Mapping[str, Any], arena: Arena) -> StoredPrompt:
    """The prompt as the front end describes it in a request's parameters."""
    keys = params["keys"]
    return StoredPrompt(
        arena,
        [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)],
        params["root"],
        params["extra"],
        params["first"],
        params["slots"],
        params.get("ticket", 0),
    )
