"""Candidates of a request: holders of its prefix and the least loaded instances, each with its cost."""

from __future__ import annotations

from collections.abc import Iterable

from sage_llm.policies.base import tokens_reserved, wait_kv
from sage_llm.policies.prefix import deepest
from sage_llm.types import Candidate, Group, InstanceView, RequestView, Snapshot, slots

__all__ = ["Search", "cached_tokens", "slows"]

_WIDE = 12  # holders of a block above which only the least loaded of them are considered
_ALL = 32  # instances considered if none of the least loaded ones is eligible
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


_Row = tuple[float, int, int, int, int, float, float]
"""The fields of a ``Candidate``."""


_new = tuple.__new__  # ``Candidate._make`` without its own call


class Search:
    """One search for candidates.

    Args:
        request: the request.
        snapshot: the cluster.
        group: group of the request's model.
        mask: its eligible instances.
        alpha: weight of tokens to compute, relative to queued ones.
        credits: share of a token's cost that is saved if its KV is in a lower tier, by tier.
        slack_s: candidates within so many seconds of the cheapest one are also found.
    """

    __slots__ = (
        "_alpha", "_avoided", "_credits", "_found", "_group", "_instances", "_mask", "_request", "_reserved",
        "_slack_s", "_snapshot", "_tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: RequestView,
        snapshot: Snapshot,
        group: Group,
        mask: int,
        alpha: float = 1.0,
        credits: tuple[float, ...] = (),
        slack_s: float = 0.0,
    ) -> None:
        self._request, self._snapshot, self._group, self._mask = request, snapshot, group, mask
        self._alpha, self._credits, self._slack_s = alpha, credits, slack_s
        self._instances = snapshot.instances
        self._reserved = tokens_reserved(request)
        # A call to embed or rerank has several texts, each of which must fit; its sum has no limit.
        self._tokens = request.prompt_tokens + request.max_tokens if request.kind == "generate" else 0
        self._found: list[_Row] = []
        self._avoided: list[_Row] = []

    def run(self) -> Search:
        """Look for candidates. Returns itself."""
        if self._snapshot.lower:
            self._tiers()
        else:
            self._device()
        return self

    def candidates(self, limit: int | None = None) -> tuple[Candidate, ...]:
        """Return the candidates, cheapest first, of equal ones those with smaller batches.

        Instances that cannot be cheaper than the first one may be missing. Candidates to avoid are returned only if
        there are no others: those at their limit of open requests, and those with running requests whose TPOT target
        would be broken. Empty if the request never fits anywhere.
        """
        rows = self._found or self._avoided
        rows.sort()
        return tuple([_new(Candidate, row) for row in rows[:limit]])

    def _device(self) -> None:
        """Consider holders from the deepest block on, until no other instance can be cheaper."""
        request, group = self._request, self._group
        keys, block, prompt = request.keys, request.block, request.prompt_tokens
        get, consider, mask = self._snapshot.kv.get, self.consider, self._mask
        held = mask & self._snapshot.kv_valid
        per_token = self._alpha / group.fastest
        bound = _NEVER  # of the cost of what is worth considering
        depth = deepest(get, keys, held) if keys and held else 0
        while depth:
            holders = get(keys[depth - 1], 0) & held
            wide = holders.bit_count() > _WIDE
            cost = consider(self._least(holders) if wide else slots(holders), prompt - depth * block)
            bound = min(bound, cost + self._slack_s)
            mask &= ~holders
            held &= ~holders
            if wide or not held:
                break
            # How many blocks must another holder have to be cheaper on the fastest, least loaded instance?
            low = 0
            if bound != _NEVER:
                low = int((prompt - (bound - group.shortest_s) / per_token) // block) + 1
                if low >= depth or (low > 0 and not get(keys[low - 1], 0) & held):
                    break
            depth = deepest(get, keys, held, low=max(low, 0), high=depth - 1)
        if per_token * prompt + group.shortest_s < bound:
            consider(self._least(mask), prompt)

    def _tiers(self) -> None:
        """Consider the holders of the deepest block of each tier, and the least loaded instances."""
        request, snapshot = self._request, self._snapshot
        keys, block = request.keys, request.block
        held = self._mask & snapshot.kv_valid
        considered = list(self._least(self._mask))
        for kv in (snapshot.kv, *snapshot.lower):
            depth = deepest(kv.get, keys, held)
            if depth:
                considered += self._least(kv.get(keys[depth - 1], 0) & held)
        for slot in dict.fromkeys(considered):
            bit = (1 << slot) & held
            depth = deepest(snapshot.kv.get, keys, bit) if bit else 0
            loaded, paid = 0, 0.0
            for credit, kv in zip(self._credits, snapshot.lower, strict=False):
                further = deepest(kv.get, keys, bit, low=depth) - depth if bit else 0
                loaded += further * block
                paid += (1.0 - credit) * further * block
                depth += further
            self.consider((slot,), request.prompt_tokens - depth * block, loaded, paid)

    def consider(self, considered: Iterable[int], uncached: int, loaded: int = 0, paid: float = 0.0) -> float:
        """Add candidates that would compute equally many tokens, and return the least cost.

        It is infinite if the request never fits on any, or should avoid all of them.

        Args:
            loaded: tokens loaded from lower tiers.
            paid: number of computed tokens that cost as much as loading them.
        """
        instances, reserved, tokens, found = self._instances, self._reserved, self._tokens, self._found
        if uncached < 1:
            uncached = 1
        work, least = self._alpha * (uncached + paid), _NEVER
        for slot in considered:
            view = instances[slot]
            assert view is not None  # groups contain only used slots
            ahead = 0.0
            total = view.kv_total
            if total:
                blocks = -(-reserved // view.page)
                if blocks > total - view.kv_reserved:
                    ahead = wait_kv(blocks, view)
                    if ahead == _NEVER:
                        continue
            if tokens > view.max_context > 0:
                continue
            queued = view.queued_tokens + view.bound_tokens
            cost = (work + queued) / view.rate + ahead
            running, opened, limit = view.running, view.open, view.open_limit
            row = (cost, running if running > opened else opened, slot, uncached, loaded, queued, ahead)
            if (limit and opened >= limit) or (view.tpot_limit and slows(self._request, view)):
                self._avoided.append(row)
                continue
            found.append(row)
            if cost < least:
                least = cost
        return least

    def _least(self, mask: int) -> list[int]:
        """The least loaded instances of a mask; all of them if none of the group's least loaded is in it."""
        if not mask:
            return []
        chosen = [slot for slot in self._group.least if mask >> slot & 1]
        return chosen or [slot for slot, _ in zip(slots(mask), range(_ALL), strict=False)]
