"""Counts of ended requests by model, service class and tenant, for ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Iterator

from attrs import define
from sage_infer.contracts import Metric

from sage_llm.manager.request import ManagedRequest

__all__ = ["RequestCounts"]

_MOST = 512  # combinations; later ones are counted together, as each costs memory here and in Prometheus
_OTHER = "(other)"


@define
class _Counts:
    ends: dict[str, int]
    prompt_tokens: int = 0
    output_tokens: int = 0
    answered: int = 0
    ttft_s: float = 0.0
    total_s: float = 0.0


class RequestCounts:
    """Sums over the ended requests."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], _Counts] = {}

    def ended(self, request: ManagedRequest) -> None:
        """Count a request that has ended."""
        service_class = (
            request.classified.service_class
            if request.classified is not None
            else request.options.service_class
        )
        key = request.model_id, service_class, request.options.tenant
        found = self._counts.get(key)
        if found is None:
            if len(self._counts) >= _MOST:
                key = request.model_id, _OTHER, _OTHER
            found = self._counts.setdefault(key, _Counts({}))
        assert request.outcome is not None
        found.ends[request.outcome] = found.ends.get(request.outcome, 0) + 1
        found.output_tokens += request.ledger.tokens
        if request.first_at is not None:
            found.answered += 1
            found.prompt_tokens += request.prompt_tokens
            found.ttft_s += request.first_at - request.arrived
            found.total_s += time.monotonic() - request.arrived

    def metrics(self) -> Iterator[Metric]:
        for (model, service_class, tenant), found in self._counts.items():
            labels = {"model": model, "service_class": service_class, "tenant": tenant}
            for outcome, count in found.ends.items():
                yield _counter("ended_requests", "Ended requests.", count, {**labels, "outcome": outcome})
            for name, text, value in (
                ("answered_requests", "Ended requests with output.", found.answered),
                ("prompt_tokens", "Prompt tokens of requests with output.", found.prompt_tokens),
                ("output_tokens", "Output tokens.", found.output_tokens),
                (
                    "time_to_first_token_seconds",
                    "Sum of the times from arrival to the first token.",
                    found.ttft_s,
                ),
                ("request_seconds", "Sum of the times from arrival to the end.", found.total_s),
            ):
                yield _counter(name, text, value, labels)


def _counter(name: str, text: str, value: float, labels: dict[str, str]) -> Metric:
    return Metric(name=f"sage_llm_{name}_total", kind="counter", help=text, value=value, labels=labels)
