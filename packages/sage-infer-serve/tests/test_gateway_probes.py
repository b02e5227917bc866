"""Monitoring: metrics, the dashboard's state and files, cross-origin pages, traces."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from attrs import frozen
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sage_infer.contracts import MemoryReporting
from sage_infer.errors import EngineDead, Overloaded
from sage_infer.schemas import Usage
from sage_infer_serve.watch.observe import BOUNDS, INTERVAL_S, POINTS, Observation, Recorder, quantile

CHAT = "/v1/chat/completions"


def samples(served: Served) -> dict[tuple[str, ...], float]:
    """Values of /metrics by name and label values."""
    text = served.get("/metrics").body.decode()
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(backend: EchoBackend, served: Served) -> None:
    served.chat()
    served.chat(stream=True)
    served.post("/v1/embeddings", {"model": "vectors", "input": "abcd"})
    served.post(CHAT, {**chat_body(), "model": "no-such-model-" + "x" * 100})
    backend.refuse = Overloaded("full", retry_after=1)
    served.chat()
    found = samples(served)
    assert found["sage_infer_http_requests_total", CHAT, "echo", "200"] == 2
    assert found["sage_infer_http_requests_total", CHAT, "echo", "429"] == 1
    assert found["sage_infer_http_requests_total", CHAT, "", "404"] == 1, "unknown names are no label"
    assert found["sage_infer_output_tokens_total", "echo"] == 6
    assert found["sage_infer_prompt_tokens_total", "echo"] == 6
    assert found["sage_infer_embedded_tokens_total", "vectors"] == 4
    assert found["sage_infer_failed_requests_total", "echo"] == 1
    assert found["sage_infer_time_to_first_token_seconds_count", "echo"] == 2
    assert found["sage_infer_inter_token_seconds_count", "echo"] == 4
    assert found["sage_infer_request_seconds_count", "echo"] == 3
    assert found[("sage_infer_kv_blocks",)] == 64
    assert found["sage_infer_model", "echo", "ready", "llm"] == 1
    assert found[("process_resident_memory_bytes",)] > 0


def test_dashboard_state(backend: EchoBackend, served: Served) -> None:
    served.chat(stream=True)
    backend.state, backend.stage, backend.share = "loading", "reading", 0.4
    state = served.get("/dashboard/state").data
    assert state["health"] == {"status": "ok", "reason": ""}
    assert [m["id"] for m in state["models"]] == ["echo", "vectors", "scores"]
    assert state["models"][0]["loading"] == {"stage": "reading", "share": 0.4}
    assert state["memory"] is None
    assert state["queue"] == {
        "open": 0, "limit": 512, "running": 0, "waiting": 0, "kv_blocks_total": 64, "kv_blocks_free": 64,
    }  # fmt: skip
    points = state["series"]["points"]
    assert len(points) == POINTS
    assert [round(b["t"] - a["t"], 6) for a, b in itertools.pairwise(points)] == [INTERVAL_S] * (POINTS - 1)
    assert points[-1]["t"] <= state["now"] < points[-1]["t"] + INTERVAL_S
    assert sum(p["output_tokens"] for p in points) == 3
    assert sum(p["ttft"]["count"] for p in points) == 1
    assert sum(p["itl"]["count"] for p in points) == 2


@frozen
class Plan:
    mode: str
    devices: tuple[Any, ...]
    shares: tuple[Any, ...]

    def used(self, device: str) -> int:
        return sum(s.weights for s in self.shares if s.device == device)


@frozen
class Device:
    name: str
    total: int
    usable: int


@frozen
class Share:
    model_id: str
    device: str
    weights: int
    kv: int = 1
    activations: int = 2
    overhead: int = 3


class PlanningBackend(EchoBackend):
    measured: ClassVar[dict[str, int | None]] = {"echo": 9, "vectors": None}

    def memory_plan(self) -> Plan:
        shares = (Share("echo", "cuda:0", 10), Share("vectors", "cpu", 20))
        return Plan("time_slice", (Device("cuda:0", 100, 90), Device("cpu", 200, 190)), shares)

    def measured_bytes(self) -> dict[str, int | None]:
        return self.measured


def test_memory_in_the_dashboards_state(serve: Callable[..., Served]) -> None:
    backend = PlanningBackend()
    assert isinstance(backend, MemoryReporting)
    memory = serve(backend).get("/dashboard/state").data["memory"]
    assert memory["devices"] == [
        {"name": "cuda:0", "total": 100, "usable": 90, "planned": 10, "measured": 9},
        {"name": "cpu", "total": 200, "usable": 190, "planned": 20, "measured": None},
    ]
    assert memory["shares"][0] == {
        "model": "echo", "device": "cuda:0", "weights": 10, "kv": 1, "activations": 2, "overhead": 3, "measured": 9,
    }  # fmt: skip


def test_pages(served: Served) -> None:
    page = served.get("/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    again = served.get("/", if_none_match=page.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    head = served.ask("HEAD", "/")
    assert (head.status, head.body, head.headers["content-length"]) == (
        200,
        b"",
        page.headers["content-length"],
    )
    assert served.get("/dashboard/plugin.py").status == 404


def test_paths_and_methods(served: Served) -> None:
    wrong = served.get(CHAT)
    assert (wrong.status, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    assert wrong.error["message"] == "method not allowed; use POST"
    assert served.ask("DELETE", "/v1/models/echo").headers["allow"] == "GET, HEAD, OPTIONS"
    assert served.post("/metrics", {}).headers["allow"] == "GET, HEAD, OPTIONS"
    assert served.get("/v1/unknown").error["code"] == "not_found"
    assert served.ask("HEAD", "/health").status == 200
    assert served.ask("OPTIONS", CHAT).headers["allow"] == "OPTIONS, POST"
    assert served.ask("OPTIONS", "/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    assert served.ask("OPTIONS", "/v1/unknown").status == 404
    everything = served.ask("OPTIONS", "*")
    assert (everything.status, everything.body) == (204, b"")
    assert everything.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert served.get("*").status == 404


def test_options_where_no_origin_is_checked(backend: EchoBackend, serve: Callable[..., Served]) -> None:
    served = serve(backend, insecure=True)
    assert served.ask("OPTIONS", "*").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    answer = served.ask("OPTIONS", CHAT, origin="https://x.example")
    assert (answer.status, answer.headers["allow"]) == (204, "OPTIONS, POST")
    assert "access-control-allow-origin" not in answer.headers


def test_a_slash_at_the_end_of_a_path_is_ignored(served: Served) -> None:
    assert served.get("/v1/models/").body == served.get("/v1/models").body
    assert served.post(CHAT + "/", chat_body()).data["object"] == "chat.completion"
    assert served.get("/health/").status == 200
    assert (served.get(CHAT + "/").status, served.ask("OPTIONS", CHAT + "/").headers["allow"]) == (
        405,
        "OPTIONS, POST",
    )
    for path in ("/v1/models//", "//", "/v1/", "/dashboard/", "/dashboard/style.css/", "/v1/unknown/"):
        assert served.get(path).status == 404, path


class TestOrigins:
    def test_pages_of_others_may_not_ask(self, served: Served) -> None:
        """Without keys, whoever can reach the server may use it; a page in the user's browser can reach it."""
        for origin in ("https://evil.example", "http://localhost:1", "null"):
            answer = served.post(CHAT, chat_body(), origin=origin)
            assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in served.ask("OPTIONS", CHAT, origin=origin).headers
        assert served.post(CHAT, chat_body(), origin=served.url).status == 200  # the dashboard's own

    def test_a_name_that_was_made_to_point_here_is_none(self, served: Served) -> None:
        port = served.address[1]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1"):
            answer = served.raw(
                f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert b" 403 " in answer.split(b"\r\n")[0], host
        for host in ("localhost", f"localhost:{port}", f"[::1]:{port}", "[::1]", "127.0.0.1", "a.localhost"):
            answer = served.raw(
                f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert b" 200 " in answer.split(b"\r\n")[0], host

    def test_those_that_are_named_may(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend, cors_origins=["https://chat.example"])
        answer = served.post(CHAT, chat_body(), origin="https://chat.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        preflight = served.ask(
            "OPTIONS", CHAT, origin="https://chat.example", access_control_request_method="POST"
        )
        assert preflight.status == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        wrong = served.post(CHAT, {}, origin="https://chat.example")
        assert (wrong.status, wrong.headers["access-control-allow-origin"]) == (400, "https://chat.example")

    def test_any_origin_is_allowed_by_a_star(
        self, backend: EchoBackend, serve: Callable[..., Served]
    ) -> None:
        served = serve(backend, cors_origins=["*"])
        assert served.get("/health", origin="https://x.example").headers["access-control-allow-origin"] == "*"


class TestRecorder:
    def test_intervals_and_totals(self) -> None:
        now = 1000.0
        recorder = Recorder(clock=lambda: now, wall=lambda: 5_000_000.0)
        for _ in range(3):
            watch = Observation(recorder, "m", now)
            now += 0.1
            watch.tokens(1)
            now += 0.2
            watch.tokens(2)
            watch.tokens(0)
            watch.end(Usage(prompt_tokens=5, completion_tokens=3))
            now += 6
        watch = Observation(recorder, "m", now)
        now += 4000  # a stream that outlives the chart
        watch.tokens(1)
        total = recorder.totals()["m"]
        assert (total.requests, total.output_tokens, total.ttft.count, total.itl.count) == (3, 9, 4, 6)
        assert total.itl.total_s == pytest.approx(0.6)
        assert total.ttft.total_s == pytest.approx(4000.3)
        series = recorder.series()
        assert [c.ttft.count for _, c in series[:-1]] == [0] * (POINTS - 1)
        assert series[-1][1].ttft.count == 1
        assert recorder.totals()["m"].requests == 3, "asking changes what is counted"

    def test_the_chart_has_every_interval(self) -> None:
        now = 0.0
        recorder = Recorder(clock=lambda: now, wall=lambda: 100.0)
        for second in range(60):
            now = float(second)
            Observation(recorder, "m", now).end(None)
        counts = [c.requests for _, c in recorder.series()]
        assert sum(counts) == 60
        assert counts[-12:] == [5] * 12

    @given(st.lists(st.floats(0.0006, 300), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
    def test_quantiles_are_within_a_bucket(self, values: list[float], share: float) -> None:
        recorder = Recorder(clock=lambda: 0.0)
        counts = recorder.counts("m", 0.0)
        for value in values:
            counts.itl.add(value)
        found = quantile(counts.itl.buckets, share)
        exact = sorted(values)[math.ceil(share * len(values)) - 1]
        assert found is not None
        assert exact / 1.36 <= found <= exact * 1.36

    def test_quantiles_at_the_ends(self) -> None:
        recorder = Recorder(clock=lambda: 0.0)
        counts = recorder.counts("m", 0.0)
        assert quantile(counts.itl.buckets, 0.5) is None
        counts.itl.add(10_000)
        assert quantile(counts.itl.buckets, 0.5) == BOUNDS[-1]


@pytest.fixture(scope="module")
def every_span() -> InMemorySpanExporter:
    """Spans of this process, which has one provider for good."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def exporter(every_span: InMemorySpanExporter) -> InMemorySpanExporter:
    every_span.clear()
    return every_span


class TestTracing:
    def test_a_request_is_a_span(
        self, backend: EchoBackend, serve: Callable[..., Served], exporter: InMemorySpanExporter
    ) -> None:
        served = serve(backend, tracing=True)
        seen: list[str] = []
        chat = backend.chat

        async def traced(*arguments: Any, **options: Any) -> Any:
            seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
            return await chat(*arguments, **options)

        backend.chat = traced  # type: ignore[method-assign]
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        body = chat_body("my secret", stream=True, temperature=0.5, n=2, stop=["x"])
        served.post(CHAT, body, traceparent=parent)
        (span,) = exporter.get_finished_spans()
        attributes = dict(span.attributes or {})
        assert span.name == "chat echo"
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c" == seen[0]
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.request.model"] == "echo"
        assert attributes["gen_ai.request.temperature"] == 0.5
        assert attributes["gen_ai.request.choice.count"] == 2
        assert attributes["gen_ai.usage.input_tokens"] == 2
        assert attributes["gen_ai.usage.output_tokens"] == 4
        assert attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
        assert [event.name for event in span.events] == ["gen_ai.first_token"]
        assert "secret" not in span.to_json()

    def test_a_failure_is_recorded_by_its_class(
        self, backend: EchoBackend, serve: Callable[..., Served], exporter: InMemorySpanExporter
    ) -> None:
        served = serve(backend, tracing=True)
        backend.refuse = EngineDead("my secret")
        served.chat()
        served.post("/v1/embeddings", {"model": "nope", "input": "x"})
        served.post("/v1/rerank", {"model": "scores", "query": "x", "documents": ["x"]})
        spans = exporter.get_finished_spans()
        assert [dict(span.attributes or {})["error.type"] for span in spans] == ["engine_dead"] * 3
        assert "secret" not in json.dumps([json.loads(span.to_json()) for span in spans])

    def test_without_a_parent_a_trace_begins(
        self, backend: EchoBackend, serve: Callable[..., Served], exporter: InMemorySpanExporter
    ) -> None:
        served = serve(backend, tracing=True)
        for traceparent in ("garbage", "00-0-0-0"):
            served.post("/v1/embeddings", {"model": "vectors", "input": "x"}, traceparent=traceparent)
        spans = exporter.get_finished_spans()
        assert [span.parent for span in spans] == [None, None]
        assert len({span.context.trace_id for span in spans}) == 2
