"""Chains of requests under one deadline, such as embed, rerank and chat: their steps, and the time left to them."""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field, frozen

__all__ = ["ChainStep", "ChainTable"]

_MAX_CHAINS = 65_536
_MAX_PIPELINES = 1024
_MAX_STEPS = 16
_WEIGHT = 0.1  # of a new measurement in a moving mean
_DEVIATIONS = 1.6  # mean absolute deviations above the mean: about the 90th percentile
_FORGOTTEN_S = 600.0  # after which a name begins a new chain


@frozen
class ChainStep:
    """One request of a chain.

    Attributes:
        tenant, chain: tenant and name of the chain.
        index: number of the step, from 0.
        model: model that it asks.
        since: arrival of the chain's first request.
        arrived: arrival of this one.
        deadline: time at which the whole chain ends unfinished; None if it has none.
        service_class, priority: those of the chain.
        left_s: time from the dispatch of this step to the end of the chain that is rarely exceeded if nothing waits.
        expected_s: mean of that time.
        later: models of the steps that follow, as far as they are usual.
    """

    tenant: str
    chain: str
    index: int
    model: str
    since: float
    arrived: float
    deadline: float | None = None
    service_class: str = ""
    priority: int = 0
    left_s: float = 0.0
    expected_s: float = 0.0
    later: tuple[str, ...] = ()


@define
class _Mean:
    """Moving mean and mean absolute deviation."""

    mean: float = 0.0
    deviation: float = 0.0
    seen: bool = False

    def add(self, value: float) -> None:
        if not self.seen:
            self.mean, self.seen = value, True
        self.deviation += _WEIGHT * (abs(value - self.mean) - self.deviation)
        self.mean += _WEIGHT * (value - self.mean)

    @property
    def high(self) -> float:
        return self.mean + _DEVIATIONS * self.deviation


@define
class _Stage:
    """What is known of the steps with one index: how many there were, their duration, and the client's time before."""

    model: str
    reached: float = 0.0
    service: _Mean = field(factory=_Mean)
    pause: _Mean = field(factory=_Mean)


@define
class _Chain:
    since: float
    last: float
    deadline: float | None
    service_class: str
    priority: int
    steps: int = 0


class ChainTable:
    """Chains by tenant and name, and what earlier chains of their pipeline show about the steps to come.

    A chain's pipeline is the part of its name before the first ``/``: chains ``rag/1`` and ``rag/2`` are of the
    pipeline ``rag``. Names without it share one pipeline. The tables are bounded: chains and pipelines that were used
    longest ago are forgotten.
    """

    def __init__(self) -> None:
        self._chains: OrderedDict[tuple[str, str], _Chain] = OrderedDict()
        self._pipelines: OrderedDict[tuple[str, str], list[_Stage]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chains)

    def begin(
        self,
        tenant: str,
        name: str,
        model: str,
        now: float,
        *,
        deadline: float | None = None,
        service_class: str = "",
        priority: int = 0,
    ) -> ChainStep:
        """A request of a chain arrives.

        Args:
            deadline: time of its own deadline; the chain's is the earliest one of its requests.
            service_class, priority: its own; those of the chain's first request apply.
        """
        key = tenant, name
        chain = self._chains.get(key)
        if chain is None or now - chain.last > _FORGOTTEN_S:
            chain = self._chains[key] = _Chain(now, now, deadline, service_class, priority)
            if len(self._chains) > _MAX_CHAINS:
                self._chains.popitem(last=False)
        self._chains.move_to_end(key)
        if deadline is not None and (chain.deadline is None or deadline < chain.deadline):
            chain.deadline = deadline
        index, chain.steps = chain.steps, chain.steps + 1
        stages = self._stages(tenant, name)
        if index < _MAX_STEPS:
            if index == len(stages):
                stages.append(_Stage(model))
            stage = stages[index]
            stage.model = model
            if index:
                stage.pause.add(max(now - chain.last, 0.0))
        chain.last = now
        left, expected, later = _rest(stages, index)
        return ChainStep(
            tenant, name, index, model, chain.since, now, chain.deadline, chain.service_class, chain.priority,
            left, expected, later,
        )  # fmt: skip

    def ended(self, step: ChainStep, now: float, service_s: float | None) -> None:
        """A request of a chain has ended; ``service_s`` is the time since its dispatch, None if it did not finish.

        A chain whose first request does not finish is forgotten, so that its client can begin it again.
        """
        key = step.tenant, step.chain
        chain = self._chains.get(key)
        if chain is not None:
            chain.last = max(chain.last, now)
        if service_s is None:
            if step.index == 0 and chain is not None and chain.since == step.since:
                del self._chains[key]
            return
        stages = self._stages(step.tenant, step.chain)
        if step.index >= len(stages):
            return
        stages[step.index].service.add(service_s)
        if step.index == 0:
            for stage in stages:
                stage.reached *= 1.0 - _WEIGHT
        stages[step.index].reached += _WEIGHT

    def _stages(self, tenant: str, name: str) -> list[_Stage]:
        pipeline, slash, _ = name.partition("/")
        key = tenant, pipeline if slash else ""
        found = self._pipelines.setdefault(key, [])
        self._pipelines.move_to_end(key)
        if len(self._pipelines) > _MAX_PIPELINES:
            self._pipelines.popitem(last=False)
        return found


def _rest(stages: list[_Stage], index: int) -> tuple[float, float, tuple[str, ...]]:
    """Time that is rarely exceeded from the dispatch of a step to the end, its mean, and the models that follow."""
    if index >= len(stages):
        return 0.0, 0.0, ()
    own = stages[index]
    left, expected = own.service.high, own.service.mean
    later = []
    for stage in stages[index + 1 :]:
        share = min(stage.reached / own.reached, 1.0) if own.reached else 1.0
        left += share * (stage.service.high + stage.pause.mean)
        expected += share * (stage.service.mean + stage.pause.mean)
        if share >= _USUAL:
            later.append(stage.model)
    return left, expected, tuple(later)


_USUAL = 0.5  # share of the chains that continue to a step from which on it counts as usual
