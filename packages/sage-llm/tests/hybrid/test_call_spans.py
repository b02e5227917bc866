"""Spans of embedding and reranking requests: one per dispatch, below the caller's, with its batch and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from plane import until
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import RequestOptions
from sage_llm.manager.manager import ControlPlaneManager
from toy_encoder import MixedExecutor, on_encoders, quick
from toy_engine import busy

TRACES = [f"{number:032x}" for number in range(1, 5)]
PARENT = f"{7:016x}"


def traced(number: int) -> RequestOptions:
    return RequestOptions(trace={"traceparent": f"00-{TRACES[number]}-{PARENT}-01"})


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_requests_of_a_batch_have_spans_of_their_own(exporter: InMemorySpanExporter) -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        (encoder,) = executor.encoders
        encoder.gate.clear()

        def start(number: int, *texts: str) -> asyncio.Task[Any]:
            return asyncio.ensure_future(manager.embed(list(texts), "vectors", options=traced(number)))

        running = start(0, "first")
        await until(lambda: encoder.calls)
        together = [start(1, "aa", "b"), start(2, "cccc"), start(3, "d" * 65)]
        await until(lambda: len(manager.dispatcher.calls.open) == 4)
        encoder.gate.set()
        await asyncio.gather(running, *together[:2])
        with pytest.raises(InvalidRequest):
            await together[2]

    on_encoders(test, settings=quick(tracing=True))
    spans = {f"{span.context.trace_id:032x}": span for span in exporter.get_finished_spans()}
    assert sorted(spans) == TRACES
    for span in spans.values():
        assert span.name == "embeddings vectors"
        assert span.parent.span_id == int(PARENT, 16)
        assert span.attributes["sage_llm.instance"] == "vectors/0"
    alone, first, second, bad = (spans[name] for name in TRACES)
    assert "sage_llm.batch_requests" not in alone.attributes
    assert [one.attributes["sage_llm.batch_requests"] for one in (first, second, bad)] == [3, 3, 3]
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert not first.links
    assert [one.attributes.get("gen_ai.usage.input_tokens") for one in (first, second, bad)] == [3, 4, None]
    assert [one.attributes.get("error.type") for one in (first, bad)] == [None, "failed"]


def test_each_dispatch_has_a_span(exporter: InMemorySpanExporter) -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        executor.encoders[0].refuses = busy()
        await manager.rerank("q", ["a"], "ranks", options=traced(0))

    on_encoders(test, settings=quick(tracing=True), embedding=0, reranker=2)
    moved, found = exporter.get_finished_spans()
    assert moved.name == found.name == "rerank ranks"
    assert moved.attributes["error.type"] == "moved"
    assert {one.attributes["sage_llm.attempt"] for one in (moved, found)} == {1, 2}
    assert {one.attributes["sage_llm.instance"] for one in (moved, found)} == {"ranks/0", "ranks/1"}
