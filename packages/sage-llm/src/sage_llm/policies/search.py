"""Candidates of a request: holders of its prefix and the least loaded instances, each with its cost."""

from __future__ import annotations

from attrs import frozen

from sage_llm.policies.base import blocks_needed, wait_kv
from sage_llm.policies.prefix import deepest
from sage_llm.types import Candidate, Group, InstanceView, RequestView, Snapshot, slots

__all__ = ["Search", "cached_tokens", "slows"]

_WIDE = 32  # holders of a block above which only the least loaded of them are considered
_ALL = 64  # instances considered if none of the least loaded ones is eligible
_NEVER = float("inf")


def slows(request: RequestView, view: InstanceView) -> bool:
    """Return whether the next step with this request would break the TPOT target of a running one."""
    if not view.tpot_limit or not view.step.base_s:
        return False
    chunk = min(request.prompt_tokens, view.chunk)
    context = view.context_tokens + request.prompt_tokens
    return view.step.predict(chunk, view.running + 1, context) > view.tpot_limit


def cached_tokens(request: RequestView, snapshot: Snapshot, slot: int) -> int:
    """Return the number of prompt tokens that one instance holds in device memory."""
    bit = (1 << slot) & snapshot.kv_valid
    return deepest(snapshot.kv.get, request.keys, bit) * request.block if bit and request.keys else 0


@frozen
class Search:
    """One search for candidates; ``found`` and ``avoided`` are filled by ``run``.

    Attributes:
        request: the request.
        snapshot: the cluster.
        group: group of the request's model.
        mask: its eligible instances.
        alpha: weight of tokens to compute, relative to queued ones.
        credits: share of a token's cost that is saved if its KV is in a lower tier, by tier.
        slack_s: candidates within so many seconds of the cheapest one are also found.
        found: candidates.
        avoided: candidates to use only if there is no other: at their limit of open requests, or with running
            requests whose TPOT target would be broken.
    """

    request: RequestView
    snapshot: Snapshot
    group: Group
    mask: int
    alpha: float
    credits: tuple[float, ...]
    slack_s: float
    found: list[Candidate]
    avoided: list[Candidate]

    def run(self) -> list[Candidate]:
        """Find candidates, and return the list to choose from; empty if the request never fits anywhere."""
        if self.snapshot.lower:
            self._tiers()
        else:
            self._device()
        return self.found or self.avoided

    def _device(self) -> None:
        """Consider holders from the deepest block on, until no holder of fewer blocks can be cheaper."""
        request, group = self.request, self.group
        get, keys, block, prompt = self.snapshot.kv.get, request.keys, request.block, request.prompt_tokens
        held = self.mask & self.snapshot.kv_valid
        seen, best = 0, _NEVER
        depth = deepest(get, keys, held) if keys else 0
        while depth:
            uncached = max(prompt - depth * block, 1)
            if self.alpha * uncached / group.fastest + group.shortest_s >= best + self.slack_s:
                break
            holders = get(keys[depth - 1], 0) & held
            wide = holders.bit_count() > _WIDE
            for slot in self._least(holders) if wide else slots(holders):
                best = min(best, self.consider(slot, uncached))
            seen |= holders
            if wide:
                break
            held &= ~holders
            depth = deepest(get, keys, held, high=depth - 1)
        for slot in self._least(self.mask & ~seen):
            self.consider(slot, prompt)

    def _tiers(self) -> None:
        """Consider the holders of the deepest block of each tier, and the least loaded instances."""
        request, snapshot = self.request, self.snapshot
        keys, block = request.keys, request.block
        held = self.mask & snapshot.kv_valid
        considered = list(self._least(self.mask))
        for kv in (snapshot.kv, *snapshot.lower):
            depth = deepest(kv.get, keys, held)
            if depth:
                considered += self._least(kv.get(keys[depth - 1], 0) & held)
        for slot in dict.fromkeys(considered):
            bit = (1 << slot) & held
            depth = deepest(snapshot.kv.get, keys, bit) if bit else 0
            loaded, paid = 0, 0.0
            for credit, kv in zip(self.credits, snapshot.lower, strict=False):
                further = deepest(kv.get, keys, bit, low=depth) - depth if bit else 0
                loaded += further * block
                paid += (1.0 - credit) * further * block
                depth += further
            self.consider(slot, request.prompt_tokens - depth * block, loaded, paid)

    def consider(self, slot: int, uncached: int, loaded: int = 0, paid: float = 0.0) -> float:
        """Add a candidate and return its cost; infinite if the request never fits or should avoid the instance.

        Args:
            loaded: tokens loaded from lower tiers.
            paid: number of computed tokens that cost as much as loading them.
        """
        request = self.request
        view = self.snapshot.instances[slot]
        assert view is not None  # groups contain only used slots
        uncached = max(uncached, 1)
        ahead = wait_kv(blocks_needed(request, view), view) if view.kv_total else 0.0
        if ahead == _NEVER or (
            view.max_context and request.prompt_tokens + request.max_tokens > view.max_context
        ):
            return _NEVER
        queued = view.queued_tokens + view.bound_tokens
        cost = (self.alpha * (uncached + paid) + queued) / view.rate + ahead
        batch = view.running if view.running > view.open else view.open
        candidate = Candidate(slot, cost, uncached, loaded, queued, ahead, batch)
        if (view.open_limit and view.open >= view.open_limit) or (view.tpot_limit and slows(request, view)):
            self.avoided.append(candidate)
            return _NEVER
        self.found.append(candidate)
        return cost

    def _least(self, mask: int) -> list[int]:
        """The least loaded instances of a mask; all of them if none of the group's least loaded is in it."""
        if not mask:
            return []
        chosen = [slot for slot in self.group.least if mask >> slot & 1]
        return chosen or [slot for slot, _ in zip(slots(mask), range(_ALL), strict=False)]
