"""Placement with separate instances for prefill and decode, decided for each request."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import field, frozen, validators

from sage_llm.policies.base import can_take, eligible
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.search import Search, slows
from sage_llm.types import Decision, Group, RequestView, Snapshot

__all__ = ["PD"]


@frozen(kw_only=True)
class PD:
    """``kv-cost`` for the instance that generates; another one computes the prompt if that delays streams less.

    With ``u`` tokens to compute, ``q`` queued tokens and the rate ``r`` of the prefill (p) and the decode (d) instance,
    a request is split if ``(u_p + q_p)/r_p + bytes/bandwidth`` is less than ``(u_d + q_d)/r_d + stall·u_d/r_d``, where
    the last term counts only while the decode instance generates for others, or if the prompt would break the TPOT
    target of one of them. Short and cached prompts are never split.

    If no decode instance is eligible, prefill instances serve whole requests.

    Attributes:
        min_tokens: tokens to compute below which a request is not split.
        bandwidth: bytes per second between instances.
        stall: weight of the delay of running streams, relative to that of the first token.
        delay_s: seconds by which the first token may be later because of the split.
    """

    name: ClassVar[str] = "pd"

    min_tokens: int = field(default=512, validator=validators.ge(0))
    bandwidth: float = field(default=1e9, validator=validators.gt(0))
    stall: float = field(default=1.0, validator=validators.ge(0))
    delay_s: float = field(default=0.0, validator=validators.ge(0))

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, usable = eligible(request, snapshot)
        if group is not None and not usable and group.prefill & ~request.excluded:
            changed = attrs.evolve(group, mask=group.prefill, prefill=0, shortest_s=0.0)
            snapshot = attrs.evolve(snapshot, groups={**snapshot.groups, request.model: changed})
            group = changed
        whole = attrs.evolve(KVCost().place(request, snapshot), policy=self.name)
        if group is None or whole.kind == "refuse" or whole.slot < 0 or whole.uncached < self.min_tokens:
            return whole
        prefill = group.prefill & ~request.excluded
        if not prefill or not request.may_split:
            return whole
        return self._split(request, snapshot, group, prefill, whole) or whole

    def _split(
        self, request: RequestView, snapshot: Snapshot, group: Group, prefill: int, whole: Decision
    ) -> Decision | None:
        """The decision with a prefill instance, if that is better than ``whole``."""
        decode = snapshot.instances[whole.slot]
        assert decode is not None  # it was chosen
        # The prefill needs KV for the prompt only, and leaves nothing running there.
        prompt = attrs.evolve(request, max_tokens=0, reserve=0)
        nearest = attrs.evolve(group, shortest_s=0.0)  # the group's is that of instances that generate
        best = Search(prompt, snapshot, nearest, prefill, whole.alpha).run().candidates(2)
        if not best:
            return None
        view = snapshot.instances[best[0].slot]
        assert view is not None  # candidates are slots of the group
        transfer_s = request.prompt_tokens * decode.kv_token_bytes / self.bandwidth
        split_s = view.queue_s + best[0].uncached / view.rate + best[0].wait_kv_s + transfer_s
        own_s = whole.uncached / decode.rate
        stalled_s = self.stall * own_s if decode.running or decode.open else 0.0
        if split_s >= decode.queue_s + own_s + stalled_s + self.delay_s and not slows(request, decode):
            return None
        idle = attrs.evolve(decode, queued_tokens=0.0)  # its queue does not matter: it gets no prompt
        blocks = -(-request.prompt_tokens // view.page) if view.kv_total else 0
        ready = can_take(request, idle, whole.blocks) and can_take(prompt, view, blocks)
        return attrs.evolve(
            whole,
            kind="dispatch" if ready else "wait",
            prefill_slot=view.slot,
            reuse=request.prompt_tokens - best[0].uncached,
            uncached=best[0].uncached,
            predicted_ttft=split_s + view.step.base_s,
            candidates=(*whole.candidates[:2], *best[:2]),
        )
