"""`sage llm serve` as a user runs it: children, the API, the control socket, and the models that flags name."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sage_infer.config import load_config
from sage_infer.errors import InvalidRequest
from sage_llm.commands.served_models import configured, from_flags, with_cpus
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, SAGE, served


def flags(**changed: Any) -> list[Any]:
    values: dict[str, Any] = {
        "backend": None, "kv_schema": None, "quant_profile": None, "options": [], "replicas": {"": 2},
        "loaded": load_config(),
    }  # fmt: skip
    names = [changed.pop(name, []) for name in ("llms", "embeddings", "rerankers")]
    return from_flags(*names, **{**values, **changed})


def test_models_from_flags(smollm2: str, minilm: str) -> None:
    (default,) = flags()
    assert (default.descriptor.model_id, default.backend, default.replicas) == ("smollm2-135m", "openvino", 2)
    llm, encoder = flags(llms=["smollm2-135m@openvino"], embeddings=["minilm"], options=["kv_cache_gb=0.5"])
    assert llm.options["kv_cache_gb"] == 0.5
    assert (encoder.backend, encoder.replicas) == ("openvino-embedding", 1)
    (fast,) = flags(kv_schema="preset=fp8")
    assert fast.options["kv_schema"] == {"preset": "fp8"}
    (more,) = flags(embeddings=["minilm"], replicas={"": 2, "minilm": 3})
    assert more.replicas == 3
    with pytest.raises(InvalidRequest, match="names 'other'"):
        flags(replicas={"other": 2})
    with pytest.raises(InvalidRequest, match="--model"):
        flags(embeddings=["minilm"], options=["a=1"])


def test_models_from_the_configuration(smollm2: str, minilm: str) -> None:
    entries = [
        "smollm2-135m",
        {"model": "minilm", "type": "embedding", "replicas": 2, "aliases": ["ada"], "model_id": "vectors"},
    ]
    llm, encoder = configured(entries, 3, load_config())
    assert llm.replicas == 3
    assert (encoder.descriptor.model_id, encoder.replicas, encoder.aliases) == ("vectors", 2, ("ada",))
    for wrong, wanted in (
        ({"model": "minilm", "repliccas": 1}, "repliccas"),
        ({"replicas": 1}, "lacks the key model"),
    ):
        with pytest.raises(InvalidRequest, match=wanted):
            configured([wrong], 1, load_config())


def test_replicas_divide_the_cpus(smollm2: str) -> None:
    (shared,) = with_cpus(flags())
    assert shared.options["threads"] >= 1
    (alone,) = with_cpus(flags(replicas={"": 1}))
    assert "threads" not in alone.options
    (chosen,) = with_cpus(flags(options=["threads=7"]))
    assert chosen.options["threads"] == 7


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector of OpenTelemetry, and the spans that it has got."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_trace(spans: list[Any]) -> None:
    """The spans of gateway, control plane and replica are one trace, each below the one before."""
    check_embedding(spans)
    (generated,) = [span for span in spans if span.name.startswith("generate ")]
    by_id = {span.span_id: span for span in spans}
    dispatched = by_id[generated.parent_span_id]
    received = by_id[dispatched.parent_span_id]
    assert dispatched.name == received.name == "chat smollm2-135m"
    assert not received.parent_span_id
    assert {span.trace_id for span in (generated, dispatched, received)} == {received.trace_id}
    found = {one.key: one.value for one in dispatched.attributes}
    assert found["sage_llm.instance"].string_value in ("smollm2-135m/0", "smollm2-135m/1")
    assert found["gen_ai.usage.output_tokens"].int_value == 4
    assert {one.key: one.value for one in generated.attributes}["gen_ai.usage.output_tokens"].int_value == 4
    assert not any(span.status.code == span.status.STATUS_CODE_ERROR for span in spans)


def check_embedding(spans: list[Any]) -> None:
    """So are those of an embedding request."""
    (embedded,) = [span for span in spans if span.name.startswith("embed ")]
    by_id = {span.span_id: span for span in spans}
    dispatched = by_id[embedded.parent_span_id]
    received = by_id[dispatched.parent_span_id]
    assert dispatched.name == received.name == "embeddings minilm"
    assert not received.parent_span_id
    assert {span.trace_id for span in (embedded, dispatched, received)} == {received.trace_id}
    found = {one.key: one.value for one in dispatched.attributes}
    assert found["sage_llm.instance"].string_value in ("minilm/0", "minilm/1")
    assert found["gen_ai.usage.input_tokens"].int_value == 3


def test_serve(smollm2: str, minilm: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Two children behind the API, with traces and metrics; SIGTERM ends everything."""
    with collector() as (otlp, spans):
        serve_once(otlp, tmp_path_factory, tmp_path)
    check_trace(spans)


def serve_once(otlp: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    (tmp_path / "traced.yaml").write_text("serve: {tracing: true}")
    environment = {RUN_FOLDER_VARIABLE: str(folder), "OTEL_EXPORTER_OTLP_ENDPOINT": otlp}
    llm = ["--config", str(tmp_path / "traced.yaml"), "llm"]
    words = [
        "--replicas", "2", "-m", "smollm2-135m", "-o", "kv_cache_gb=0.25", "--embedding", "minilm",
        "--replicas", "minilm=2",
    ]  # fmt: skip
    with served(tmp_path, *llm, "serve", *words, environment=environment) as (server, ready):
        assert [row["state"] for row in ready["replicas"]] == ["ready"] * 4
        body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"{ready['url']}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
        request = urllib.request.Request(
            f"{ready['url']}/v1/embeddings",
            json.dumps({"model": "minilm", "input": "hello"}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            assert json.load(answer)["usage"]["prompt_tokens"] == 3
        status = subprocess.run(
            [*SAGE, *llm, "status"],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            check=True,
            cwd=tmp_path,
        )
        assert "1 finished" in status.stdout
        with urllib.request.urlopen(f"{ready['url']}/metrics", timeout=GUARD_S) as answer:
            text = answer.read().decode()
        assert 'sage_llm_instance_up{instance="smollm2-135m/0"' in text
        ended = [line for line in text.splitlines() if line.startswith("sage_llm_ended_requests_total{")]
        assert len(ended) == 1
        assert 'model="smollm2-135m",outcome="finished"' in ended[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(GUARD_S) == 0, (tmp_path / "errors").read_text()
        assert not list(folder.glob("*.sock"))
