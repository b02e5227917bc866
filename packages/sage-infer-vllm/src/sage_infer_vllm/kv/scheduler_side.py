"""The connector's part in the engine core: held blocks, and the pages that requests load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer_vllm.kv.arena import ArenaPlace
from sage_infer_vllm.kv.plan import PARAMS, ArenaCopies, PageLoad
from sage_infer_vllm.kv.served import ServedStore
from sage_infer_vllm.kv.stored import StoredPages, StoredPrompt, prompt_of

__all__ = ["SchedulerSide"]


class SchedulerSide:
    """Called by vLLM's scheduler, in one thread.

    A held block is one whose reference count is raised: vLLM counts it as used and computes no step for it.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._pool: Any = None
        self._stored = StoredPages(page_size)
        self._prompts: dict[str, StoredPrompt] = {}  # of requests that use a KV store
        self._served: ServedStore | None = None
        self._held: dict[str, list[int]] = {}
        self._loads: list[PageLoad] = []
        self._resumed: list[str] = []  # holds whose pages are in the plan of this step
        self._loaded: set[str] = (
            set()
        )  # requests whose pages were planned from a file; a second time they compute

    def bind(self, pool: Any) -> None:
        """``pool``: vLLM's block pool."""
        self._pool = pool

    def serve(self, store: ServedStore) -> None:
        """Use a store that the engine core has opened."""
        self._served = store

    def arrived(self, request: Any) -> None:
        """A request has come."""
        if self._served is not None:
            self._served.arrived(request)

    def matched_tokens(self, request: Any, computed: int) -> int | None:
        """Tokens of the prompt behind the ``computed`` ones whose KV can be loaded; all but the last. None where it is
        not known yet.
        """
        params = self._params(request)
        if self._served is not None:
            if self._served.is_pending(request):
                return None
            prompt = self._served.prompt(request, computed)
            if prompt is not None:
                self._prompts[request.request_id] = prompt
        if "stored" in params:
            self._prompt(request, params["stored"])
        if request.request_id in self._prompts:
            return self._stored.matched_tokens(request, self._prompts[request.request_id], computed)
        if not self._can_load(request, params) or request.skip_reading_prefix_cache:
            return 0
        tokens, name = int(request.num_prompt_tokens), params["resume"]
        needed = -(-tokens // self._page_size) - computed // self._page_size
        if name in self._held and needed > self._pool.get_num_free_blocks():
            # Copies need blocks in addition to the held ones. Without them the request would wait for its own hold
            # forever; it computes its prompt instead, as after a preemption.
            self.release(name)
            return 0
        return max(tokens - 1 - computed, 0)

    def allocated(self, request: Any, block_ids: Sequence[Sequence[int]], loaded_tokens: int) -> None:
        """vLLM has allocated the request's blocks and expects KV of ``loaded_tokens`` in them."""
        params = self._params(request)
        if request.request_id in self._prompts:
            self._stored.allocated(request, self._prompts[request.request_id], block_ids[0], loaded_tokens)
            if self._served is not None:
                self._served.allocated(request, self._stored.step, loaded_tokens)
        if not self._can_load(request, params):
            return
        name, end, size = params["resume"], int(request.num_prompt_tokens) - 1, self._page_size
        if loaded_tokens:
            first, last = (end - loaded_tokens) // size, -(-end // size)
            blocks = tuple(block_ids[0][first:last])
            if name in self._held:
                self._loads.append(PageLoad(blocks, held=tuple(self._held[name][first:last])))
            else:
                self._loads.append(PageLoad(blocks, file=params["file"], first=first))
        if name in self._held:
            self._resumed.append(name)
        else:
            self._loaded.add(request.request_id)

    def planned(self) -> tuple[PageLoad, ...]:
        """The step's loads, when the step is scheduled.

        Workers run steps in order and copy before they compute, so a block that is freed here is not written before
        it was read.
        """
        loads, self._loads = tuple(self._loads), []
        for name in self._resumed:
            self.release(name)
        self._resumed.clear()
        return loads

    def saves(self, step: Any) -> list[tuple[int, int]]:
        """See ``StoredPages.saves``."""
        return self._stored.saves(step)

    def copies(self, step: Any, saves: Sequence[tuple[int, int]]) -> ArenaCopies | None:
        """See ``StoredPages.copies``."""
        if self._served is not None:
            self._served.planned(computes=step.total_num_scheduled_tokens > 0, saves=bool(saves))
        return self._stored.copies(saves)

    def close(self) -> None:
        """The engine stops."""
        if self._served is not None:
            self._served.close()

    def finished(self, request: Any, block_ids: Sequence[Sequence[int]]) -> dict[str, Any] | None:
        """A request has ended; returns its ``kv_transfer_params`` where its blocks are held now."""
        params = self._params(request)
        self._loaded.discard(request.request_id)
        if self._prompts.pop(request.request_id, None) is not None:
            self._stored.finished(request)
        if self._served is not None:
            self._served.finished(request)
        for name in params.get("release", ()):
            self.release(name)
        if "resume" in params and params["resume"] not in self._resumed:
            self.release(params["resume"])  # it ended before it was scheduled
        if "hold" not in params or request.status.name != "FINISHED_LENGTH_CAPPED" or not block_ids:
            return None
        pages = -(-int(request.num_prompt_tokens) // self._page_size)
        held = list(block_ids[0][:pages])
        self._pool.touch([self._pool.blocks[block] for block in held])
        self._held[params["hold"]] = held
        return {PARAMS: {"blocks": held}}

    def release(self, name: str) -> None:
        """Free held blocks; unknown names are ignored."""
        held = self._held.pop(name, None)
        if held is not None:  # the last one first, so that a prefix stays longest
            self._pool.free_blocks([self._pool.blocks[block] for block in reversed(held)])

    def _prompt(self, request: Any, stored: Mapping[str, Any]) -> StoredPrompt:
        found = self._prompts.get(request.request_id)
        if found is None:
            found = prompt_of(stored, self._stored.arena(ArenaPlace.of(stored["arena"])))
            self._prompts[request.request_id] = found
        return found

    def _can_load(self, request: Any, params: Mapping[str, Any]) -> bool:
        if "resume" not in params or params["resume"] in self._resumed:
            return False
        if params["resume"] in self._held:
            return True
        return "file" in params and request.request_id not in self._loaded

    def _params(self, request: Any) -> Mapping[str, Any]:
        """What the front end asks for. Clients of ``vllm serve`` write these parameters themselves, so there they are
        ignored.
        """
        found = {} if self._served is not None else (request.kv_transfer_params or {}).get(PARAMS)
        return found if isinstance(found, Mapping) else {}
