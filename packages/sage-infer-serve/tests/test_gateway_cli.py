"""Arguments of the commands. Serving requires engines: see the repository's end-to-end tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from sage_infer.cli.main import app
from sage_infer.config import load_config
from sage_infer.errors import InvalidRequest
from sage_infer.factories import load_object
from sage_infer.schemas import ModelDescriptor
from sage_infer_serve.cli import _example
from sage_infer_serve.plugin import sage_infer_commands
from sage_infer_serve.served_models import configured_models, model_config, named_models, with_profiles
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("smollm2-135m", {"model": "smollm2-135m"}),
        ("Qwen/Qwen3-8B@vllm", {"model": "Qwen/Qwen3-8B", "backend": "vllm"}),
        ("/models/a@b/c.gguf", {"model": "/models/a@b/c.gguf"}),
        ("/models/a@b/c.gguf@openvino", {"model": "/models/a@b/c.gguf", "backend": "openvino"}),
    ],
)
def test_names_with_backends(text: str, config: dict[str, str]) -> None:
    assert model_config(text, "--llm") == config


def test_a_backend_alone_is_no_name() -> None:
    with pytest.raises(InvalidRequest, match="--llm must be NAME"):
        model_config("@vllm", "--llm")


def test_models_from_flags() -> None:
    assert named_models([], [], []) == {}
    assert named_models(["a", "b@vllm"], ["c"], ["d"]) == {
        "llm_config": {"model": "a"},
        "embedding_config": {"model": "c"},
        "reranker_config": {"model": "d"},
        "models": [{"model": "b", "backend": "vllm"}],
    }


def test_profiles_from_flags() -> None:
    one = named_models(["a"], ["c"], [])
    assert with_profiles(one, ["w8.json"])["llm_config"] == {"model": "a", "quant_profile": "w8.json"}
    several = with_profiles(named_models(["a", "b@vllm"], ["c"], []), ["b=w8.json", "c=w4.json"])
    assert several == {
        "llm_config": {"model": "a"},
        "embedding_config": {"model": "c", "quant_profile": "w4.json"},
        "models": [{"model": "b", "backend": "vllm", "quant_profile": "w8.json"}],
    }
    with pytest.raises(InvalidRequest, match=r"must be MODEL=FILE if several .*; models: a, c, b"):
        with_profiles(several, ["w8.json"])
    with pytest.raises(InvalidRequest, match="names 'd'; models: a, c"):
        with_profiles(one, ["d=w8.json"])


def test_models_from_the_configuration(tmp_path: Path) -> None:
    assert configured_models(load_config(environ={})) == {
        "llm_config": "smollm2-135m",
        "embedding_config": "minilm",
    }
    file = tmp_path / "sage_infer.yaml"
    file.write_text("inference:\n  quant_profile: eight.yaml\n")
    assert configured_models(load_config(file, environ={}))["llm_config"] == {
        "model": "smollm2-135m",
        "quant_profile": str(tmp_path / "eight.yaml"),
    }
    file.write_text("serve:\n  models: [a, {model: b, backend: vllm}]\n")
    assert configured_models(load_config(file, environ={})) == {
        "models": ["a", {"model": "b", "backend": "vllm"}]
    }


@pytest.mark.parametrize(
    ("kind", "path"),
    [("llm", "/v1/chat/completions"), ("embedding", "/v1/embeddings"), ("reranker", "/v1/rerank")],
)
def test_the_example_fits_the_models(kind: str, path: str) -> None:
    model = ModelDescriptor(model_id="m", model_type=kind, model_path="/")  # type: ignore[arg-type]
    claims = SimpleNamespace(supports=lambda feature: True)
    backend = SimpleNamespace(list_models=lambda: [model], get_model_capability=lambda model_id: claims)
    found, body = _example(backend)
    assert found == path
    assert json.loads(body)["model"] == "m"


def test_commands_can_be_imported() -> None:
    for spec in sage_infer_commands():
        assert callable(load_object(spec.app, what=spec.path))


def test_keys_by_command(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    run = CliRunner().invoke
    added = run(app, ["infer", "key", "add", "ann", "--file", str(file), "--concurrency", "2", "--json"])
    assert added.exit_code == 0, added.output
    key = json.loads(added.stdout)["key"]
    assert key not in file.read_text()
    plain = run(app, ["infer", "key", "add", "bob", "--file", str(file)])
    assert plain.stdout.startswith("sk-sage-")
    listed = run(app, ["infer", "key", "list", "--file", str(file)])
    assert "CONCURRENCY" in listed.stdout
    assert [
        row["name"]
        for row in json.loads(run(app, ["infer", "key", "list", "--file", str(file), "--json"]).stdout)
    ] == ["ann", "bob"]
    assert run(app, ["infer", "key", "remove", "ann", "--file", str(file)]).exit_code == 0
    assert "ann" not in file.read_text()
    missing = run(app, ["infer", "key", "list"], env={"SAGE_INFER_CONFIG": ""})
    assert isinstance(missing.exception, InvalidRequest)
