"""Admission: a request is accepted only if its answer can begin within a target time."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators

from sage_llm.policies.base import nowhere
from sage_llm.types import Decision, RequestView, Snapshot

__all__ = ["PredictedWait"]


@frozen(kw_only=True)
class PredictedWait:
    """Refuse requests that would wait for longer than their target.

    The predicted wait is the time in which the queue of the model drains at its present speed, plus the shortest queue
    of an instance. While a queue is younger than two seconds, its speed is the sum of the instances' prefill rates.
    ``Retry-After`` is the predicted wait less the target.

    A chain is refused at its first request if the waits for all of its usual steps and their duration exceed its
    deadline. Only other chains wait ahead of it, as it passes requests with more time. Its later requests are accepted
    in any case, because work was spent on them.

    Attributes:
        target_s: longest wait in seconds of requests without a TTFT target.
        slack: factor on TTFT targets: a request is refused above ``slack`` times its target.
        always: number of waiting requests per model that are always accepted.
        max_queued: number of waiting requests per tenant above which the tenant's requests are refused; 0 for no
            limit.
    """

    name: ClassVar[str] = "predicted-wait"

    target_s: float = field(default=30.0, validator=validators.gt(0))
    slack: float = field(default=1.0, validator=validators.gt(0))
    always: int = field(default=8, validator=validators.ge(0))
    max_queued: int = field(default=0, validator=validators.ge(0))

    def admit(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group = snapshot.groups.get(request.model)
        if group is None or not group.mask:
            return nowhere(self.name, request, snapshot)
        tenant = snapshot.tenants.get(request.tenant)
        if self.max_queued and tenant is not None and tenant.queued >= self.max_queued:
            wait = self.wait_s(request, snapshot)
            message = (
                f"{tenant.queued} requests of tenant {request.tenant!r} wait already, the limit is "
                f"{self.max_queued}; retry when some have ended"
            )
            return self._refuse(request, "quota", message, wait, max(wait, 1.0))
        wait = self.wait_s(request, snapshot)
        if request.chain_step:
            return Decision("wait", request.id, policy=self.name, predicted_ttft=wait)
        if request.expected_s and request.deadline is not None:
            models = (request.model, *request.later)
            whole = sum(self._wait_of_chain(model, snapshot) for model in models) + request.expected_s
            missing = snapshot.now + whole - request.deadline
            if missing > 0:
                message = (
                    f"its chain {request.chain!r} is expected to take {whole:.1f} s, and has "
                    f"{request.deadline - snapshot.now:.1f} s; retry in {missing:.1f} s, or with a later deadline"
                )
                return self._refuse(request, "overloaded", message, wait, missing)
            return Decision("wait", request.id, policy=self.name, predicted_ttft=wait)
        if request.deadline is not None and snapshot.now + wait >= request.deadline:
            message = (
                f"its deadline passes in {request.deadline - snapshot.now:.1f} s, before it could start "
                f"(expected wait {wait:.1f} s); send it again with a later deadline"
            )
            return self._refuse(request, "late", message, wait, wait)
        target = self.target_s if request.slo_ttft is None else request.slo_ttft * self.slack
        if group.waiting >= self.always and wait > target:
            message = (
                f"{group.waiting} requests of model {request.model!r} wait; the expected wait is {wait:.1f} s, the "
                f"target {target:g} s; retry in {wait - target:.1f} s"
            )
            return self._refuse(request, "overloaded", message, wait, wait - target)
        return Decision("wait", request.id, policy=self.name, predicted_ttft=wait)

    def wait_s(self, request: RequestView, snapshot: Snapshot) -> float:
        """Return the expected time until a new request would be started."""
        return self._wait_of(request.model, snapshot)

    def _wait_of_chain(self, model: str, snapshot: Snapshot) -> float:
        """Wait of a chain's request, which passes those with more time."""
        group = snapshot.groups.get(model)
        if group is None or not group.rate:
            return 0.0
        return group.chain_tokens / group.rate + group.shortest_s

    def _wait_of(self, model: str, snapshot: Snapshot) -> float:
        group = snapshot.groups.get(model)
        if group is None or not group.rate:
            return 0.0
        if not group.waiting:
            return group.shortest_s
        speed = min(group.drain, group.rate) if group.drain else group.rate
        return group.waiting_tokens / speed + group.shortest_s

    def _refuse(
        self, request: RequestView, reason: str, message: str, wait: float, retry_after: float
    ) -> Decision:
        return Decision(
            "refuse",
            request.id,
            policy=self.name,
            reason=reason,  # type: ignore[arg-type]
            message=message,
            predicted_ttft=wait,
            retry_after=retry_after,
        )
