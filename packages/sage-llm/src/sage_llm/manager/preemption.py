"""Pauses of running requests: in favour of more urgent ones, and of those whose reserve they have borrowed."""

from __future__ import annotations

from collections.abc import Collection

from sage_llm.manager.placing import Placement
from sage_llm.manager.request import ManagedRequest
from sage_llm.policies.preempt import RunningView, victims
from sage_llm.policies.take_back import borrowers

__all__ = ["to_pause"]


def to_pause(placement: Placement, opened: Collection[ManagedRequest], now: float) -> list[ManagedRequest]:
    """The running requests to pause now."""
    chosen = [*_for_owners(placement, opened, now), *_for_urgent(placement, opened, now)]
    return list(dict.fromkeys(chosen))


def _for_urgent(placement: Placement, opened: Collection[ManagedRequest], now: float) -> list[ManagedRequest]:
    """The requests to pause for the most urgent waiting request of each model."""
    urgent: dict[str, ManagedRequest] = {}
    for waiting in placement.waiting():
        view = waiting.view
        if not isinstance(waiting, ManagedRequest) or view is None or view.slo_ttft is None:
            continue
        first = urgent.get(waiting.model_id)
        if (
            first is None
            or first.view is None
            or (view.band, view.arrived) < (first.view.band, first.view.arrived)
        ):
            urgent[waiting.model_id] = waiting
    if not urgent:
        return []
    running = [r for r in opened if r.attempt is not None and r.view is not None and r.model_id in urgent]
    snapshot = placement.builder.snapshot(now)
    chosen: list[ManagedRequest] = []
    for model_id, waiting in urgent.items():
        own = [r for r in running if r.model_id == model_id]
        pausable = {r.request_id: r for r in own if _can_pause(r)}
        if not pausable or waiting.view is None:
            continue
        left = min((_left_tokens(r) for r in own), default=0.0)
        names = victims(waiting.view, [_view(placement, r) for r in pausable.values()], snapshot, left)
        chosen += [pausable[name] for name in names]
    return chosen


def _for_owners(placement: Placement, opened: Collection[ManagedRequest], now: float) -> list[ManagedRequest]:
    """The requests to pause for one waiting request of each model that is within its reserve."""
    tree = placement.gate.tree
    chosen: list[ManagedRequest] = []
    for model_id in tree.waiting_models():
        owner = next(tree.first_entitled(model_id), None)
        if owner is None:
            continue
        pausable = {
            r.request_id: r for r in opened if r.model_id == model_id and r.view is not None and _can_pause(r)
        }
        names = borrowers(
            owner,
            [_view(placement, r) for r in pausable.values()],
            placement.builder.snapshot(now),
            lambda running, owner=owner: tree.to_pause(owner, running),  # type: ignore[misc]
        )
        chosen += [pausable[name] for name in names]
        tree.took_back(owner, len(names))
    return chosen


def _can_pause(request: ManagedRequest) -> bool:
    """Whether it runs, and can be continued exactly later."""
    if request.attempt is None or not request.can_continue:
        return False
    return "resume" in request.attempt.instance.features or not request.ledger.has_started


def _left_tokens(request: ManagedRequest) -> float:
    assert request.view is not None
    assert request.attempt is not None
    return max(request.view.out_q50 - request.attempt.output_tokens, 1.0)


def _view(placement: Placement, request: ManagedRequest) -> RunningView:
    assert request.view is not None
    assert request.attempt is not None
    slot = request.attempt.instance.slot
    return RunningView(
        request.request_id,
        slot,
        request.classified.band if request.classified is not None else request.view.band,
        request.last_dispatched_at,
        placement.builder.reserved(slot, request.request_id),
    )
