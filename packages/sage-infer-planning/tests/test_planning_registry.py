"""States of models, and the names that requests use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from sage_infer.names import ModelType
from sage_infer.schemas import ModelDescriptor
from sage_infer_planning.registry import ModelRegistry
from sage_infer_planning.router import ModelRouter

STATES = ("registered", "loading", "ready", "draining", "sleeping", "failed")


def model(name: str, kind: ModelType = "llm") -> ModelDescriptor:
    return ModelDescriptor(model_id=name, model_type=kind, model_path=f"/{name}")


def registry() -> ModelRegistry:
    found = ModelRegistry(clock=lambda: 12.0)
    found.register(model("qwen2.5-7b"), ["gpt-4o"])
    found.register(model("smollm2"))
    found.register(model("minilm", "embedding"))
    return found


@given(st.lists(st.sampled_from(STATES)))
def test_a_move_is_made_or_refused_and_never_half(states: list[str]) -> None:
    found = registry()
    entry = found.entries()[0]
    for state in states:
        before, refusal = entry.status, ""
        try:
            found.move(entry, state, "why")  # type: ignore[arg-type]
        except InvalidRequest as refused:
            refusal = refused.message
        if refusal:
            assert entry.status == before
            assert before.state in refusal
            assert state in refusal
        else:
            assert entry.state == state
            assert (entry.status.reason, entry.status.since) == ("why", 12.0)


def test_a_name_means_one_model() -> None:
    found = registry()
    with pytest.raises(InvalidRequest, match=r"'gpt-4o' already refers to model 'qwen2\.5-7b'"):
        found.register(model("other"), ["gpt-4o"])
    with pytest.raises(InvalidRequest, match="already refers to model"):
        found.register(model("gpt-4o"))


def test_a_model_in_use_is_not_changed() -> None:
    found = registry()
    entry = found.entries()[0]
    found.move(entry, "loading")
    with pytest.raises(InvalidRequest, match="is loading; unload it"):
        found.register(model("qwen2.5-7b"))


def test_routes() -> None:
    found = registry()
    router = ModelRouter(found)
    assert router.route("gpt-4o", ("llm",)).descriptor.model_id == "qwen2.5-7b"
    assert router.route("smollm2", ("llm",)).descriptor.model_id == "smollm2"
    assert router.route(None, ("embedding",)).descriptor.model_id == "minilm"
    assert router.route("embedding", ("embedding",)).descriptor.model_id == "minilm"
    assert router.route(None, ("llm", "multimodal")).descriptor.model_id == "qwen2.5-7b"
    second = found.entries()[1]
    found.move(second, "loading")
    found.move(second, "ready")
    assert router.route(None, ("llm",)).descriptor.model_id == "smollm2"  # it can answer


@pytest.mark.parametrize(
    ("name", "types", "error", "message"),
    [
        ("qwen2.5", ("llm",), ModelNotFound, "no model 'qwen2.5'; did you mean 'qwen2.5-7b'"),
        ("zzz", ("llm",), ModelNotFound, "no model 'zzz'; models: qwen2.5-7b, smollm2, minilm"),
        (None, ("reranker",), ModelNotFound, "no model here can rerank"),
        ("minilm", ("llm",), UnsupportedFeature, "'minilm' can embed, but not generate; models: qwen2.5-7b"),
    ],
)
def test_what_is_not_there_is_said(
    name: str | None, types: tuple[ModelType, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ModelRouter(registry()).route(name, types)
