"""Placement by the cost of what must be computed and of what is queued before it: the default."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators

from sage_llm.policies.base import blocks_needed, cheapest, decide, eligible, nowhere, wait_kv
from sage_llm.policies.prefix import deepest
from sage_llm.types import Candidate, Decision, Group, InstanceView, RequestView, Snapshot, slots

__all__ = ["KVCost"]

_WIDE = 32  # holders of a block above which only the least loaded of them are considered
_ALL = 64  # instances considered if none of the least loaded ones is eligible


@frozen(kw_only=True)
class KVCost:
    """Choose the instance with the least ``α·uncached/rate + queued/rate + wait for KV blocks``.

    ``α = clamp(1/(1−ρ), 1, alpha_max)``, where ρ is the load of the last 20 s: a token computed again delays each
    request behind it, so it costs more the busier the cluster is. Tokens that are loaded from a lower tier count
    ``1 − credit`` tokens.

    An instance on which the predicted step would break the TPOT target of a running request, or that is at its limit
    of open requests, is chosen only if there is no other.

    Attributes:
        alpha: fixed weight of tokens to compute; 0 derives it from the load.
        alpha_max: largest weight derived from the load.
        credit_dram: share of a token's cost saved if its KV is in the host's memory, 0 to 1.
        credit_ssd: share saved if its KV is on the instance's disk, 0 to 1.
    """

    name: ClassVar[str] = "kv-cost"

    alpha: float = field(default=0.0, validator=validators.ge(0))
    alpha_max: float = field(default=8.0, validator=validators.ge(1))
    credit_dram: float = field(default=0.75, validator=(validators.ge(0), validators.le(1)))
    credit_ssd: float = field(default=0.25, validator=(validators.ge(0), validators.le(1)))

    def weight(self, rho: float) -> float:
        """Return α for a load ρ."""
        if self.alpha:
            return self.alpha
        if rho >= 1.0:
            return self.alpha_max
        return min(max(1.0 / (1.0 - rho), 1.0), self.alpha_max)

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        alpha = self.weight(group.rho)
        found: list[Candidate] = []
        avoided: list[Candidate] = []
        search = self._tiers if snapshot.lower else self._device
        search(request, snapshot, group, mask, alpha, found, avoided)
        best = cheapest(found or avoided)
        if not best:
            return nowhere(self.name, request, snapshot)
        view = snapshot.instances[best[0].slot]
        assert view is not None  # candidates are slots of the group
        return decide(
            self.name, request, view, uncached=best[0].uncached, candidates=best, alpha=alpha, rho=group.rho
        )

    def _device(
        self,
        request: RequestView,
        snapshot: Snapshot,
        group: Group,
        mask: int,
        alpha: float,
        found: list[Candidate],
        avoided: list[Candidate],
    ) -> None:
        """Consider holders from the deepest block on, until no holder of fewer blocks can be cheaper."""
        get, keys, block, prompt = snapshot.kv.get, request.keys, request.block, request.prompt_tokens
        held = mask & snapshot.kv_valid
        seen = 0
        best = float("inf")
        depth = deepest(get, keys, held)
        while depth:
            uncached = max(prompt - depth * block, 1)
            if alpha * uncached / group.fastest + group.shortest_s >= best:
                break
            holders = get(keys[depth - 1], 0) & held
            wide = holders.bit_count() > _WIDE
            for slot in _least(group, holders) if wide else slots(holders):
                best = min(
                    best, self._consider(request, snapshot, slot, alpha, uncached, 0, 0.0, found, avoided)
                )
            seen |= holders
            if wide:
                break
            held &= ~seen
            depth = deepest(get, keys, held, high=depth - 1)
        for slot in _least(group, mask & ~seen):
            self._consider(request, snapshot, slot, alpha, max(prompt, 1), 0, 0.0, found, avoided)

    def _tiers(
        self,
        request: RequestView,
        snapshot: Snapshot,
        group: Group,
        mask: int,
        alpha: float,
        found: list[Candidate],
        avoided: list[Candidate],
    ) -> None:
        """Consider the holders of the deepest block of each tier and the least loaded instances."""
        keys, block = request.keys, request.block
        held = mask & snapshot.kv_valid
        views = (snapshot.kv, *snapshot.lower)
        considered = list(_least(group, mask))
        for kv in views:
            depth = deepest(kv.get, keys, held)
            if depth:
                considered += _least(group, kv.get(keys[depth - 1], 0) & held)
        for slot in dict.fromkeys(considered):
            bit = (1 << slot) & held
            depth = deepest(snapshot.kv.get, keys, bit) if bit else 0
            loaded, paid = 0, 0.0
            for credit, kv in zip((self.credit_dram, self.credit_ssd), snapshot.lower, strict=False):
                further = deepest(kv.get, keys, bit, low=depth) - depth if bit else 0
                loaded += further * block
                paid += (1.0 - credit) * further * block
                depth += further
            uncached = max(request.prompt_tokens - depth * block, 1)
            self._consider(request, snapshot, slot, alpha, uncached, loaded, paid, found, avoided)

    @staticmethod
    def _consider(
        request: RequestView,
        snapshot: Snapshot,
        slot: int,
        alpha: float,
        uncached: int,
        loaded: int,
        paid: float,
        found: list[Candidate],
        avoided: list[Candidate],
    ) -> float:
        """Add a candidate and return its cost; infinite if the request never fits or should avoid the instance."""
        view = snapshot.instances[slot]
        assert view is not None  # groups contain only used slots
        blocks = blocks_needed(request, view)
        ahead = wait_kv(blocks, view) if blocks else 0.0
        if ahead == float("inf") or (
            view.max_context and request.prompt_tokens + request.max_tokens > view.max_context
        ):
            return float("inf")
        queued = view.queued_tokens + view.bound_tokens
        cost = (alpha * (uncached + paid) + queued) / view.rate + ahead
        candidate = Candidate(slot, cost, uncached, loaded, queued, ahead)
        if (view.open_limit and view.open >= view.open_limit) or _slows(request, view):
            avoided.append(candidate)
            return float("inf")
        found.append(candidate)
        return cost


def _least(group: Group, mask: int) -> list[int]:
    """The least loaded instances of a mask; all of them if none of the group's least loaded ones is among them."""
    if not mask:
        return []
    chosen = [slot for slot in group.least if mask >> slot & 1]
    if chosen or group.size <= len(group.least):
        return chosen
    return [slot for slot, _ in zip(slots(mask), range(_ALL), strict=False)]


def _slows(request: RequestView, view: InstanceView) -> bool:
    """Whether the next step with this request would break the TPOT target of a running one."""
    if not view.tpot_limit or not view.step.base_s:
        return False
    chunk = min(request.prompt_tokens, view.chunk)
    context = view.context_tokens + request.prompt_tokens
    return view.step.predict(chunk, view.running + 1, context) > view.tpot_limit
