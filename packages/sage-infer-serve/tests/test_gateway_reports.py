"""Reports of a backend: metrics, a cluster, and its own tool-call parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gateway_backend import EchoBackend, TokenizingBackend
from gateway_served import Served, events
from prometheus_client.parser import text_string_to_metric_families
from sage_infer.contracts import ChatAnswer, Metric, ToolCall
from sage_infer.errors import ModelNotFound
from sage_infer.schemas import CapabilityDescriptor

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ANSWER = ["Let me look. ", "CALL look_up", "(tides)"]


class ReportingBackend(EchoBackend):
    """Several instances behind one object, and a parser of calls such as ``CALL name(argument)``."""

    features: tuple[str, ...] = ("tool_calls",)

    def metrics(self) -> Iterator[Metric]:
        for instance, depth in (("a", 3.0), ("b", 5.0)):
            yield Metric(
                name="sage_llm_queue_depth", kind="gauge", help="Requests that wait.", value=depth,
                labels={"instance": instance},
            )  # fmt: skip
        yield Metric(name="sage_llm_retries", kind="counter", help="Requests sent again.", value=2.0)

    def cluster(self) -> Mapping[str, Any]:
        return {"instances": [{"instance_id": "a", "running": 1}], "policy": "fifo"}

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        if model_id != "echo":
            raise ModelNotFound(f"no model {model_id!r}")
        return CapabilityDescriptor(
            backend_name="echo", instance_type="general", hardware_backend="cpu", max_batch_size=1,
            max_sequence_length=64, supported_precisions=("fp32",), features=self.features,
        )  # fmt: skip

    async def parse_tool_calls(self, text: str, *, model: str | None = None, tools: Any = None) -> ChatAnswer:
        assert (model, tools) == ("echo", [TOOL])
        content, _, call = text.partition("CALL ")
        if not call:
            return ChatAnswer(content=text)
        name, _, argument = call.rstrip(")").partition("(")
        return ChatAnswer(
            content=content.strip(), tool_calls=(ToolCall(name=name, arguments=f'"{argument}"'),)
        )


def test_metrics_of_the_backend_are_shown(serve: Callable[..., Served]) -> None:
    text = serve(ReportingBackend()).get("/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    depth = families["sage_llm_queue_depth"]
    assert (depth.type, depth.documentation) == ("gauge", "Requests that wait.")
    assert {s.labels["instance"]: s.value for s in depth.samples} == {"a": 3.0, "b": 5.0}
    assert [s.value for s in families["sage_llm_retries"].samples] == [2.0]
    assert "sage_infer_uptime_seconds" in families


def test_a_cluster_is_in_the_dashboards_state(backend: EchoBackend, serve: Callable[..., Served]) -> None:
    state = serve(ReportingBackend()).get("/dashboard/state").data
    assert state["cluster"] == {"instances": [{"instance_id": "a", "running": 1}], "policy": "fifo"}
    assert serve(backend).get("/dashboard/state").data["cluster"] is None


class TestToolCalls:
    def test_the_backends_parser_comes_first(self, serve: Callable[..., Served]) -> None:
        backend = ReportingBackend()
        backend.script = ANSWER
        served = serve(backend)
        (choice,) = served.chat(tools=[TOOL]).data["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me look."
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "look_up", "arguments": '"tides"'}
        chunks = [c for c in events(served.chat(tools=[TOOL], stream=True).body) if c != "[DONE]"]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Let me look."
        streamed = [c for delta in deltas for c in delta.get("tool_calls", ())]
        assert [c["function"] for c in streamed] == [call["function"]]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_an_answer_without_calls_is_content(self, serve: Callable[..., Served]) -> None:
        backend = ReportingBackend()
        backend.script = ["no ", "tools"]
        served = serve(backend)
        for n in (1, 2):
            choices = served.chat(tools=[TOOL], n=n).data["choices"]
            assert [choice["message"]["content"] for choice in choices] == ["no tools"] * n
            assert {choice["finish_reason"] for choice in choices} == {"stop"}

    def test_without_a_parser_the_built_in_readers_do_it(self, serve: Callable[..., Served]) -> None:
        backend = ReportingBackend()
        backend.features = ()
        backend.script = ['<tool_call>{"name": "look_up", "arguments": {}}</tool_call>']
        (choice,) = serve(backend).chat(tools=[TOOL]).data["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "look_up"


class TokenizingReports(ReportingBackend, TokenizingBackend):
    """Reports capabilities and shows tokens."""


def test_the_context_length_in_force_is_listed(serve: Callable[..., Served]) -> None:
    served = serve(TokenizingReports())
    listed = {model["id"]: model["max_model_len"] for model in served.get("/v1/models").data["data"]}
    assert listed == {"echo": 64, "vectors": None, "scores": None}
    assert served.get("/v1/models/echo").data["max_model_len"] == 64
    assert served.post("/tokenize", {"model": "echo", "prompt": "ab"}).data["max_model_len"] == 64
