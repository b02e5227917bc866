"""Protocols of policies, and what placement policies share: eligibility, capacity and the final decision.

A policy is a frozen attrs object: its fields are its parameters. It keeps no state, reads no clock and draws no
random number, so that the same request and snapshot always yield the same decision.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from sage_llm.types import Candidate, Decision, DecisionKind, Group, InstanceView, RequestView, Snapshot

__all__ = [
    "AdmissionPolicy",
    "OrderPolicy",
    "PlacementPolicy",
    "blocks_needed",
    "can_take",
    "decide",
    "eligible",
    "nowhere",
    "tokens_reserved",
    "wait_kv",
]

RELEASE_S = 0.25
"""Requests are kept here while more than one chunk plus this many seconds of work is ahead of them on an instance,
so that they can still be reordered, cancelled or bound to another instance."""
UNKNOWN_RELEASE_S = 5.0
"""Expected wait for KV blocks on an instance that has not reported how fast its requests release blocks."""


@runtime_checkable
class OrderPolicy(Protocol):
    """Order in which waiting requests are dispatched.

    Attributes:
        name: name in the configuration.
        ageing_s: seconds of waiting after which a request moves up by one band.
        by_band: whether smaller bands are served first.
        by_tenant: whether tenants of a band receive equal service.
    """

    name: ClassVar[str]

    @property
    def ageing_s(self) -> float: ...
    @property
    def by_band(self) -> bool: ...
    @property
    def by_tenant(self) -> bool: ...
    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        """Return the request's position among requests of its band and tenant; the smallest is dispatched first.

        The key is computed once, when the request starts to wait. It therefore contains the time of arrival
        instead of the time waited, which orders requests in the same way.
        """
        ...


@runtime_checkable
class PlacementPolicy(Protocol):
    """Choice of the instance for a request."""

    name: ClassVar[str]

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        """Return a decision of kind dispatch, wait or refuse."""
        ...


@runtime_checkable
class AdmissionPolicy(Protocol):
    """Acceptance or refusal of a request before it is queued, in constant time."""

    name: ClassVar[str]

    def admit(self, request: RequestView, snapshot: Snapshot) -> Decision:
        """Return a decision of kind wait (accepted, no slot yet) or refuse."""
        ...


def eligible(request: RequestView, snapshot: Snapshot) -> tuple[Group | None, int]:
    """Return the group of a request's model, and the mask of its instances that the request may use."""
    group = snapshot.groups.get(request.model)
    if group is None:
        return None, 0
    mask = group.mask & ~request.excluded
    if request.adapter:
        mask &= group.adapters.get(request.adapter, 0)
    return group, mask


def tokens_reserved(request: RequestView) -> int:
    """Return the number of tokens to reserve KV for; 0 for embeddings and reranking."""
    if request.kind != "generate":
        return 0
    output = request.max_tokens
    return request.prompt_tokens + (output if not 0 <= request.reserve < output else request.reserve)


def blocks_needed(request: RequestView, view: InstanceView) -> int:
    """Return the number of KV blocks to reserve for a request on an instance."""
    return -(-tokens_reserved(request) // view.page) if view.kv_total else 0


def wait_kv(blocks: int, view: InstanceView) -> float:
    """Return the expected time until an instance has ``blocks`` unreserved KV blocks; infinite if never."""
    if not view.kv_total:
        return 0.0
    if blocks > view.kv_total:
        return float("inf")
    missing = blocks - (view.kv_total - view.kv_reserved)
    if missing <= 0:
        return 0.0
    return missing / view.kv_release if view.kv_release > 0 else UNKNOWN_RELEASE_S


def can_take(request: RequestView, view: InstanceView, blocks: int) -> bool:
    """Return whether an instance can take a request now without over-committing anything.

    It must be ready or in probation below its limit, have enough unreserved KV blocks and room in its batch, and
    have at most one chunk plus ``RELEASE_S`` of work queued.
    """
    return (
        view.state in ("ready", "probation")
        and (not view.kv_total or view.kv_reserved + blocks <= view.kv_total)
        and (not view.open_limit or view.open < view.open_limit)
        and (not view.max_batch or view.open < view.max_batch or request.kind != "generate")
        and (not view.queued_tokens or view.queued_tokens <= view.chunk + RELEASE_S * view.rate)
    )


def decide(
    policy: str,
    request: RequestView,
    view: InstanceView,
    *,
    uncached: int,
    candidates: tuple[Candidate, ...] = (),
    alpha: float = 1.0,
    rho: float = 0.0,
) -> Decision:
    """Return the decision for a chosen instance: dispatch if it can take the request now, else wait."""
    blocks = blocks_needed(request, view) if view.kv_total else 0
    ahead = wait_kv(blocks, view) if blocks and blocks > view.kv_total - view.kv_reserved else 0.0
    kind: DecisionKind = "dispatch" if ahead == 0.0 and can_take(request, view, blocks) else "wait"
    return Decision(
        kind,
        request.id,
        view.slot,
        policy,
        "",
        "",
        request.prompt_tokens - uncached,
        uncached,
        blocks,
        view.queue_s + uncached / view.rate + view.step.base_s + ahead,
        0.0,
        alpha,
        rho,
        candidates,
    )


def nowhere(policy: str, request: RequestView, snapshot: Snapshot) -> Decision:
    """Return the decision for a request that no instance can take: wait for one to return, or refuse for ever.

    It waits if an instance of the model is starting, suspect or draining, or is only excluded by earlier attempts.
    """
    named = [v for v in snapshot.instances if v is not None and request.model in v.models]
    if not named:
        message = f"no instance serves model {request.model!r}; start one, or name a model that is served"
        return Decision("refuse", request.id, policy=policy, reason="unavailable", message=message)
    if request.adapter and not any(request.adapter in v.adapters for v in named):
        message = f"no instance of {request.model!r} has loaded the adapter {request.adapter!r}"
        return Decision("refuse", request.id, policy=policy, reason="unavailable", message=message)
    if all(_too_large(request, v) for v in named):
        largest = max(_capacity(v) for v in named)
        message = (
            f"the request needs {request.prompt_tokens} prompt tokens and up to {request.max_tokens} output tokens; "
            f"the largest instance holds {largest} tokens; shorten the prompt or lower max_tokens"
        )
        return Decision("refuse", request.id, policy=policy, reason="too_large", message=message)
    states = ", ".join(f"{v.instance_id} {v.state}" for v in named[:4])
    if all(v.state == "dead" for v in named):
        message = f"no instance of {request.model!r} is alive ({states}); retry when one has restarted"
        return Decision(
            "refuse", request.id, policy=policy, reason="unavailable", message=message, retry_after=1.0
        )
    return Decision("wait", request.id, policy=policy, message=f"waits for an instance ({states})")


def _capacity(view: InstanceView) -> int:
    limits = [n for n in (view.max_context, view.kv_total * view.page) if n]
    return min(limits) if limits else 0


def _too_large(request: RequestView, view: InstanceView) -> bool:
    if request.kind != "generate":
        return False  # each of its texts has to fit, not their sum
    return bool(_capacity(view)) and request.prompt_tokens + request.max_tokens > _capacity(view)
