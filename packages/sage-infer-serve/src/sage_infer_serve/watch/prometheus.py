"""``/metrics`` in the text format of Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sage_infer.contracts import Metric as Sample
from sage_infer.contracts import MetricsReporting

from sage_infer_serve.service import Service
from sage_infer_serve.watch.observe import BOUNDS, Histogram

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_HISTOGRAMS = (
    ("ttft", "sage_infer_time_to_first_token_seconds", "Time from a request's arrival to its first token."),
    ("itl", "sage_infer_inter_token_seconds", "Time between two tokens of a stream."),
    ("e2e", "sage_infer_request_seconds", "Time from a request's arrival to the end of its processing."),
)
_TOKENS = (
    ("prompt_tokens", "Prompt tokens."),
    ("cached_tokens", "Prompt tokens found in a cache."),
    ("output_tokens", "Generated tokens."),
    ("embedded_tokens", "Tokens of embedding and reranking inputs."),
)


def exposition(service: Service) -> bytes:
    """The metrics of the gateway, and those of the process (memory, CPU, file descriptors) where available."""
    registry = CollectorRegistry()
    registry.register(_Gateway(service))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Gateway(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        recorder = self._service.recorder
        answers = CounterMetricFamily(
            "sage_infer_http_requests", "HTTP requests answered.", labels=["endpoint", "model", "status"]
        )
        for (endpoint, model, status), count in recorder.answers.items():
            answers.add_metric([endpoint, model, str(status)], count)
        yield answers
        totals = recorder.totals()
        for field, name, text in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=["model"])
            for model, counts in totals.items():
                found: Histogram = getattr(counts, field)
                histogram.add_metric([model], _cumulative(found), found.total_s)
            yield histogram
        for field, text in _TOKENS:
            tokens = CounterMetricFamily(f"sage_infer_{field}", text, labels=["model"])
            for model, counts in totals.items():
                tokens.add_metric([model], getattr(counts, field))
            yield tokens
        errors = CounterMetricFamily(
            "sage_infer_failed_requests", "Requests that failed in the backend.", labels=["model"]
        )
        for model, counts in totals.items():
            errors.add_metric([model], counts.errors)
        yield errors
        yield from self._gauges()
        if isinstance(self._service.backend, MetricsReporting):
            yield from _backends_own(self._service.backend.metrics())

    def _gauges(self) -> Iterator[Metric]:
        service = self._service
        stats = service.backend.stats()
        values = (
            ("sage_infer_open_requests", "Requests in progress in the gateway.", len(service.open)),
            ("sage_infer_running_sequences", "Sequences in the batches of all engines.", stats.running),
            ("sage_infer_waiting_requests", "Requests waiting in the queues of all engines.", stats.waiting),
            ("sage_infer_kv_blocks", "KV blocks of all engines.", stats.kv_blocks_total),
            ("sage_infer_kv_blocks_free", "KV blocks available to new requests.", stats.kv_blocks_free),
            ("sage_infer_event_loop_tasks", "Tasks of the gateway's event loop.", len(asyncio.all_tasks())),
            (
                "sage_infer_uptime_seconds",
                "Time since the gateway was created.",
                time.time() - service.started,
            ),
        )
        for name, text, value in values:
            yield GaugeMetricFamily(name, text, value=value)
        models = GaugeMetricFamily(
            "sage_infer_model", "1 for the current state of a model.", labels=["model", "type", "state"]
        )
        for model in service.backend.list_models():
            state = service.backend.get_model_status(model.model_id).state
            models.add_metric([model.model_id, model.model_type, state], 1)
        yield models


def _backends_own(samples: Iterable[Sample]) -> Iterator[Metric]:
    """Samples of the backend, one metric family per name, with the labels of all its samples."""
    families: dict[str, list[Sample]] = {}
    for sample in samples:
        families.setdefault(sample.name, []).append(sample)
    for name, found in families.items():
        labels = sorted({label for sample in found for label in sample.labels})
        kind = CounterMetricFamily if found[0].kind == "counter" else GaugeMetricFamily
        family = kind(name, found[0].help, labels=labels)
        for sample in found:
            family.add_metric([sample.labels.get(label, "") for label in labels], sample.value)
        yield family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    seen, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), histogram.buckets, strict=True):
        seen += count
        found.append((bound, float(seen)))
    return found
