"""docs/grafana: every query of the dashboard names metrics that a running control plane exports."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs
from sage_infer.contracts import EngineStats
from sage_infer.schemas import ModelDescriptor, Prompt, ReplicaSpec, SamplingParams, TokenDelta
from sage_infer.sdk import BackendReplica, BaseExecutor, BaseInferenceBackend
from sage_infer_serve import GatewaySettings, running_gateway
from sage_llm import ControlPlaneManager, ServedModel

DASHBOARD = Path(__file__).resolve().parents[1] / "docs/grafana/control-plane.json"
MODEL = ModelDescriptor(model_id="toy", model_type="llm", model_path="/toy")
NAME = re.compile(r"\bsage_(?:infer|llm)_\w+")


class Engine(BaseInferenceBackend):
    """Answers with two tokens, and reports KV blocks."""

    name = "toy"
    features = ("tokenize",)
    vocabulary = 100
    max_sequence_length = 64

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return [1, 2, 3]

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        return "x" * len(token_ids)

    async def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        yield TokenDelta("a", (4,))
        yield TokenDelta("b", (5,), finish_reason="stop")

    def stats(self) -> EngineStats:
        return attrs.evolve(super().stats(), kv_blocks_total=256, kv_blocks_free=200)


class InProcess(BaseExecutor):
    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        engine = Engine(MODEL)
        await engine.start()
        return BackendReplica(spec, engine)


async def exported() -> set[str]:
    """Names of the metrics after one request."""
    plane = ControlPlaneManager([ServedModel(descriptor=MODEL, backend="toy")], InProcess())
    await plane.start()
    try:
        async with running_gateway(plane, GatewaySettings(port=0)) as gateway:

            def ask() -> str:
                body = json.dumps({"model": "toy", "prompt": "x", "stream": True}).encode()
                request = urllib.request.Request(f"{gateway.url}/v1/completions", body)
                request.add_header("content-type", "application/json")
                try:
                    urllib.request.urlopen(request).read()
                except urllib.error.HTTPError as error:
                    raise AssertionError(error.read()) from None
                with urllib.request.urlopen(f"{gateway.url}/metrics") as answer:
                    return str(answer.read(), "utf-8")

            text = await asyncio.to_thread(ask)
    finally:
        await plane.close()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


def test_every_query_names_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    assert len(queries) > len(dashboard["panels"]) > 10
    known = asyncio.run(exported())
    for query in queries:
        found = NAME.findall(query)
        assert found, query
        assert set(found) <= known, query


def test_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)
