"""How soon prompts are continued, by class and age: learned from the requests of a store."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable

__all__ = ["ChainClass", "ReuseModel"]

_SHORTEST_S = 0.05
_GROWTH = 1.4
_BUCKETS = 44  # the last one begins after about a day
_EDGES = [0.0, *(_SHORTEST_S * _GROWTH**i for i in range(_BUCKETS))]
_PRIOR = 2.0  # observations of all classes together that each class begins with
_FIRST_REBUILD = 32
_REBUILD_SHARE = 0.05
_MOST_OBSERVATIONS = 20_000.0  # then all counts are halved, so that old traffic is forgotten

ChainClass = tuple[int, int]


class ReuseModel:
    """Estimates the rate of reuse of prompts (chains of blocks): continuations per second that their blocks are held.

    Continued chains are observed at their age; chains that are still open, or were forgotten, are censored at theirs
    (Kaplan and Meier). The value of a chain at some age is the maximum, over all later ages, of its chance to be
    continued until then, divided by the expected seconds for which it is held until then (the index of Gittins).
    Memory does not depend on the number of requests.
    """

    def __init__(self) -> None:
        self._continued: defaultdict[ChainClass, list[float]] = defaultdict(lambda: [0.0] * _BUCKETS)
        self._censored: defaultdict[ChainClass, list[float]] = defaultdict(lambda: [0.0] * _BUCKETS)
        self._values: dict[ChainClass, list[float]] = {}
        self._pooled = [0.0] * _BUCKETS
        self._observed = 0.0
        self._new = 0
        self._needed = _FIRST_REBUILD

    def continued(self, of: ChainClass, age: float) -> None:
        """A chain of this class was continued at this age, in seconds."""
        self._continued[of][_bucket(age)] += 1.0
        self._count()

    def forgotten(self, of: ChainClass, age: float) -> None:
        """A chain of this class had not been continued at this age, and is not observed any longer."""
        self._censored[of][_bucket(age)] += 1.0
        self._count()

    def value(self, of: ChainClass, age: float) -> float:
        """Rate of reuse, per second, of a chain that has not been continued until this age."""
        return self._values.get(of, self._pooled)[_bucket(age)]

    @property
    def is_due(self) -> bool:
        """Whether enough was observed since the last ``rebuild``."""
        return self._new >= self._needed

    def rebuild(self, open_chains: Iterable[tuple[ChainClass, float]]) -> None:
        """Estimate all values anew; ``open_chains`` are class and age of those that may still be continued."""
        waiting: defaultdict[ChainClass, list[float]] = defaultdict(lambda: [0.0] * _BUCKETS)
        for of, age in open_chains:
            waiting[of][_bucket(age)] += 1.0
        hazards: dict[ChainClass, list[tuple[float, float]]] = {}
        for of in {*self._continued, *self._censored, *waiting}:
            lost = [a + b for a, b in zip(self._censored[of], waiting[of], strict=True)]
            hazards[of] = _events_and_risks(self._continued[of], lost)
        pooled = [
            sum(h[k][0] for h in hazards.values()) / max(1e-9, sum(h[k][1] for h in hazards.values()))
            for k in range(_BUCKETS)
        ]
        self._pooled = _values(pooled)
        self._values = {
            of: _values(
                [
                    (events + _PRIOR * rate) / (risk + _PRIOR)
                    for (events, risk), rate in zip(hazard, pooled, strict=True)
                ]
            )
            for of, hazard in hazards.items()
        }
        self._new, self._needed = 0, max(_FIRST_REBUILD, int(_REBUILD_SHARE * self._observed))

    def _count(self) -> None:
        self._new += 1
        self._observed += 1.0
        if self._observed > _MOST_OBSERVATIONS:
            for counts in (*self._continued.values(), *self._censored.values()):
                counts[:] = [count / 2 for count in counts]
            self._observed /= 2


def _bucket(age: float) -> int:
    return min(bisect.bisect_right(_EDGES, max(age, 0.0)) - 1, _BUCKETS - 1)


def _events_and_risks(continued: list[float], lost: list[float]) -> list[tuple[float, float]]:
    """Events, and chains at risk, of each bucket; those that are lost in a bucket count half."""
    at_risk = sum(continued) + sum(lost)
    found = []
    for events, gone in zip(continued, lost, strict=True):
        found.append((events, max(at_risk - gone / 2, 0.0)))
        at_risk -= events + gone
    return found


def _values(hazard: list[float]) -> list[float]:
    values = []
    for first in range(_BUCKETS):
        survival, hits, held, best = 1.0, 0.0, 0.0, 0.0
        for k in range(first, _BUCKETS):
            chance = min(hazard[k], 1.0)
            held += survival * (_EDGES[k + 1] - _EDGES[k]) * (1.0 - chance / 2)
            hits += survival * chance
            survival *= 1.0 - chance
            best = max(best, hits / held)
        values.append(best)
    return values
