"""Classes of requests, and the length of output that each class is expected to have, learned from what ended."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen, validators

from sage_llm.types import RequestKind

__all__ = ["Classified", "LengthClass", "RequestClassifier", "ServiceClass"]

LengthClass = Literal["short", "medium", "long", "huge"]

_LENGTHS: tuple[tuple[int, LengthClass], ...] = ((512, "short"), (4096, "medium"), (16_384, "long"))
_BUCKETS_PER_OCTAVE = 4
_BUCKETS = 18 * _BUCKETS_PER_OCTAVE  # up to 262,144 tokens
_HALF_LIFE = 500  # requests after which an observation counts half
_PRIOR = 8.0  # observations that the prior is worth
_GROWTH = 2.0 ** (1.0 / _HALF_LIFE)
_MAX_WEIGHT = 2.0**64
_SMALL = 0.02  # share of new observations below which quantiles are not computed again
_SHARES = (0.5, 0.9)
_MAX_CLASSES = 1024
_MAX_SESSIONS = 65_536


@frozen(kw_only=True)
class ServiceClass:
    """A service class, from the section ``llm.classes`` of the configuration.

    Attributes:
        band: priority band; smaller bands are served first.
        ttft_s: TTFT target in seconds; None for none.
        tpot_s: TPOT target in seconds; None for none.
        strict_kv: whether KV is reserved for ``max_tokens``; otherwise for the 90th percentile of the expected
            output, and the engine preempts if that was too little.
    """

    band: int = 0
    ttft_s: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    tpot_s: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    strict_kv: bool = False


_CLASSES: Mapping[str, ServiceClass] = {
    "": ServiceClass(),
    "interactive": ServiceClass(band=0, ttft_s=2.0),
    "batch": ServiceClass(band=2, strict_kv=True),
}


@frozen
class Classified:
    """What is known of a request from its class.

    Attributes:
        length: class of its prompt's length.
        service_class: name of its service class; the default one if its own is unknown.
        band: priority band: that of its class plus the request's priority.
        turn: number of its turn in its session, from 1.
        ttft_s: TTFT target; None for none.
        tpot_s: TPOT target; None for none.
        out_q50: median of the expected output tokens, at most ``max_tokens``.
        out_q90: 90th percentile of the expected output tokens, at most ``max_tokens``.
        reserve: output tokens to reserve KV for; -1 for ``max_tokens``.
    """

    length: LengthClass
    service_class: str
    band: int
    turn: int
    ttft_s: float | None
    tpot_s: float | None
    out_q50: float
    out_q90: float
    reserve: int


class _Histogram:
    """Decaying histogram of output lengths in logarithmic buckets.

    Instead of all earlier observations counting less after each new one, the new one counts more.
    """

    __slots__ = ("_weight", "counts", "total", "version")

    def __init__(self) -> None:
        self.counts: dict[int, float] = {}
        self.total = 0.0
        self.version = 0
        self._weight = 1.0

    def add(self, value: int) -> None:
        bucket = _bucket(value)
        self._weight *= _GROWTH
        self.counts[bucket] = self.counts.get(bucket, 0.0) + self._weight
        self.total += self._weight
        self.version += 1
        if self._weight > _MAX_WEIGHT:
            self.counts = {bucket: count / self._weight for bucket, count in self.counts.items()}
            self.total, self._weight = self.total / self._weight, 1.0

    def quantiles(self, shares: tuple[float, ...], prior: _Histogram | None) -> list[float] | None:
        """The quantiles, with the prior's distribution as ``_PRIOR`` observations; None if both are empty."""
        weight = _PRIOR / prior.total if prior is not None and prior.total else 0.0
        found = {bucket: count / self._weight for bucket, count in self.counts.items()}
        if weight and prior is not None:
            for bucket, count in prior.counts.items():
                found[bucket] = found.get(bucket, 0.0) + weight * count
        if not found:
            return None
        rows, total, quantiles = sorted(found.items()), sum(found.values()), []
        for share in shares:
            wanted, seen, found_in = share * total, 0.0, rows[-1][0]
            for bucket, count in rows:
                seen += count
                if seen >= wanted - 1e-9:
                    found_in = bucket
                    break
            quantiles.append(_value(found_in))
        return quantiles

    def is_recent(self, version: int) -> bool:
        """Whether only a small share of the observations is later than ``version``."""
        return 0 <= self.version - version <= min(version, _HALF_LIFE) * _SMALL


_NONE = _Histogram()


def _bucket(value: int) -> int:
    return min(int(math.log2(max(value, 1)) * _BUCKETS_PER_OCTAVE), _BUCKETS - 1)


def _value(bucket: int) -> float:
    return float(2.0 ** ((bucket + 1) / _BUCKETS_PER_OCTAVE))


class RequestClassifier:
    """Classifies requests and learns their lengths of output.

    Outputs are learned per model, kind of request, service class and length of prompt; a class with few observations
    borrows from its model. The tables are bounded: classes and sessions used longest ago are forgotten.

    Args:
        classes: service classes by name; the name ``""`` is the default class. The default ones are ``interactive``
            (TTFT 2 s) and ``batch`` (band 2, KV reserved strictly).
    """

    def __init__(self, classes: Mapping[str, ServiceClass] | None = None) -> None:
        self._classes = {**_CLASSES, **(classes or {})}
        self._outputs: OrderedDict[tuple[str, ...], _Histogram] = OrderedDict()
        self._known: dict[tuple[str, ...], tuple[int, int, list[float] | None]] = {}
        self._turns: OrderedDict[tuple[str, str], int] = OrderedDict()

    def classify(
        self,
        model: str,
        *,
        kind: RequestKind = "generate",
        prompt_tokens: int,
        max_tokens: int,
        priority: int = 0,
        service_class: str = "",
        tenant: str = "",
        session: str = "",
        ttft_s: float | None = None,
        tpot_s: float | None = None,
    ) -> Classified:
        """Return the class of a request. Each call with a session counts a turn of it.

        Args:
            service_class: name of a service class; unknown names mean the default class.
            ttft_s: the request's own TTFT target, which replaces that of its class.
            tpot_s: the request's own TPOT target.
        """
        name = service_class if service_class in self._classes else ""
        chosen = self._classes[name]
        length = self.length(prompt_tokens)
        q50, q90 = self._quantiles(model, kind, name, length, max_tokens)
        return Classified(
            length,
            name,
            chosen.band + priority,
            self._turn(tenant, session),
            ttft_s if ttft_s is not None else chosen.ttft_s,
            tpot_s if tpot_s is not None else chosen.tpot_s,
            q50,
            q90,
            -1 if chosen.strict_kv else math.ceil(q90),
        )

    @staticmethod
    def length(prompt_tokens: int) -> LengthClass:
        """Return the class of a prompt's length: short (≤ 512), medium (≤ 4,096), long (≤ 16,384) or huge."""
        for bound, name in _LENGTHS:
            if prompt_tokens <= bound:
                return name
        return "huge"

    def ended(
        self,
        model: str,
        output_tokens: int,
        *,
        kind: RequestKind = "generate",
        service_class: str = "",
        prompt_tokens: int,
    ) -> None:
        """Learn the length of an output that ended by itself or by ``max_tokens``."""
        if kind != "generate" or output_tokens <= 0:
            return
        name = service_class if service_class in self._classes else ""
        for key in ((model, kind, name, self.length(prompt_tokens)), (model, kind)):
            self._histogram(key).add(output_tokens)

    def _quantiles(
        self, model: str, kind: str, name: str, length: str, max_tokens: int
    ) -> tuple[float, float]:
        if kind != "generate":
            return 0.0, 0.0
        pooled = self._outputs.get((model, kind))
        found = None
        if pooled is not None:
            key = model, kind, name, length
            own = self._outputs.get(key) or _NONE
            known = self._known.get(key)
            if known is None or not (own.is_recent(known[0]) and pooled.is_recent(known[1])):
                known = own.version, pooled.version, own.quantiles(_SHARES, pooled)
                if len(self._known) >= _MAX_CLASSES:
                    self._known.clear()
                self._known[key] = known
            found = known[2]
        # Nothing has ended yet: half the limit as the median is a guess, the limit as the 90th percentile is safe.
        q50, q90 = (max_tokens / 2, float(max_tokens)) if found is None else found
        return min(q50, float(max_tokens)), min(q90, float(max_tokens))

    def _histogram(self, key: tuple[str, ...]) -> _Histogram:
        found = self._outputs.get(key)
        if found is None:
            found = self._outputs[key] = _Histogram()
            if len(self._outputs) > _MAX_CLASSES:
                self._outputs.popitem(last=False)
        self._outputs.move_to_end(key)
        return found

    def _turn(self, tenant: str, session: str) -> int:
        if not session:
            return 1
        key = (tenant, session)
        turn = self._turns.get(key, 0) + 1
        self._turns[key] = turn
        self._turns.move_to_end(key)
        if len(self._turns) > _MAX_SESSIONS:
            self._turns.popitem(last=False)
        return turn
