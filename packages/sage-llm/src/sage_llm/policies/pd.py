"""Placement with separate instances for prefill and decode, decided for each request."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import field, frozen, validators

from sage_llm.policies.base import can_take, eligible
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.search import Search, slows
from sage_llm.types import Decision, RequestView, Snapshot

__all__ = ["PD"]


@frozen(kw_only=True)
class PD:
    """``kv-cost`` for the decode instance; prefill elsewhere only if the first token is then expected sooner.

    With ``u`` tokens to compute, ``q`` queued tokens and ``r`` the rate of the prefill (p) and decode (d) instance,
    the request is split if ``u_p/r_p + q_p/r_p + bytes/bandwidth < u_d/r_d + q_d/r_d``, or if the prefill would break
    the TPOT target of a request that the decode instance runs. Short and cached prompts are never split.

    Attributes:
        min_tokens: uncached tokens below which a request is never split.
        bandwidth: bytes per second between instances.
    """

    name: ClassVar[str] = "pd"

    min_tokens: int = field(default=512, validator=validators.ge(0))
    bandwidth: float = field(default=1e9, validator=validators.gt(0))

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        whole = attrs.evolve(KVCost().place(request, snapshot), policy=self.name)
        group, _ = eligible(request, snapshot)
        prefill = group.prefill & ~request.excluded if group is not None else 0
        if whole.kind == "refuse" or whole.slot < 0 or not prefill or request.kind != "generate":
            return whole
        if whole.uncached < self.min_tokens or prefill >> whole.slot & 1:
            return whole
        decode = snapshot.instances[whole.slot]
        assert decode is not None
        assert group is not None
        # The prefill needs KV for the prompt only, and leaves nothing running there.
        prompt = attrs.evolve(request, max_tokens=0, reserve=0)
        best = Search(prompt, snapshot, group, prefill, whole.alpha).run().candidates(4)
        if not best:
            return whole
        view = snapshot.instances[best[0].slot]
        assert view is not None
        transfer_s = request.prompt_tokens * decode.kv_token_bytes / self.bandwidth
        split_s = view.queue_s + best[0].uncached / view.rate + best[0].wait_kv_s + transfer_s
        whole_s = decode.queue_s + whole.uncached / decode.rate
        if split_s >= whole_s and not slows(request, decode):
            return whole
        free = not decode.kv_total or decode.kv_reserved + whole.blocks <= decode.kv_total
        blocks = -(-request.prompt_tokens // view.page) if view.kv_total else 0
        ready = free and can_take(prompt, view, blocks)
        return attrs.evolve(
            whole,
            kind="dispatch" if ready else "wait",
            prefill_slot=view.slot,
            reuse=request.prompt_tokens - best[0].uncached,
            uncached=best[0].uncached,
            predicted_ttft=split_s + view.step.base_s,
            candidates=(*whole.candidates[:2], *best[:2]),
        )
