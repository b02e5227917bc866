"""Arriving work of a model, in replicas that it would keep busy: from reports and from the queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_llm.scaling.types import PoolView
from sage_llm.types import InstanceView

__all__ = ["WorkMeter", "pools"]


class WorkMeter:
    """Measures the work between two calls.

    Prompts: tokens that the engines computed, plus the growth of the queues, relative to the prefill rate of a replica.
    Output: the largest share of a replica's batch, of its KV blocks, or of the TPOT target of its requests that is in
    use.

    Args:
        requests: sequences that a replica is to run simultaneously; 0 for the size of its batch.
    """

    def __init__(self, requests: int = 0) -> None:
        self._requests = requests
        self._computed: Mapping[Any, int] = {}
        self._backlog = 0.0
        self._at: float | None = None
        self._rate = 0.0

    def measure(
        self,
        now: float,
        views: Sequence[InstanceView],
        computed: Mapping[Any, int],
        waiting_tokens: float,
    ) -> tuple[float, float]:
        """Return the work of prompts and that of output.

        Args:
            views: the replicas that accept requests.
            computed: prompt tokens that each replica has computed, by replica and generation.
            waiting_tokens: prompt tokens of requests that wait in the control plane.
        """
        prompts = [view for view in views if view.role == "prefill"] or views
        if prompts:
            self._rate = sum(view.rate for view in prompts) / len(prompts)
        backlog = waiting_tokens + sum(view.queued_tokens for view in views)
        done = sum(max(tokens - self._computed.get(key, 0), 0) for key, tokens in computed.items())
        elapsed = 0.0 if self._at is None else now - self._at
        arrived = (done + backlog - self._backlog) / elapsed if elapsed > 0 else 0.0
        self._computed, self._backlog, self._at = dict(computed), backlog, now
        output = sum(self._in_use(view) for view in views if view.role != "prefill")
        return (arrived / self._rate if self._rate else 0.0), output

    def _in_use(self, view: InstanceView) -> float:
        batch = min([n for n in (self._requests, view.max_batch) if n], default=0)
        shares = [view.running / batch if batch else 0.0]
        if view.kv_total:
            shares.append(view.kv_reserved / view.kv_total)
        if view.tpot_limit and view.running:
            shares.append(view.step.base_s / view.tpot_limit)
        return max(shares)


def pools(
    work: tuple[float, float], *, ready: int, prefill: int | None, open_requests: int, wait_s: float
) -> tuple[PoolView, PoolView | None]:
    """The views of both roles.

    Args:
        work: work of prompts and of output.
        ready: replicas that accept whole requests or decode.
        prefill: replicas that compute prompts for them; None if the model is served without them.
    """
    prompts, output = work
    if prefill is None:
        return PoolView(ready, prompts + output, open_requests, wait_s), None
    own = output if prefill else prompts + output
    return PoolView(ready, own, open_requests, wait_s), PoolView(prefill, prompts, open_requests)
