"""The two sample models, and models that a plug-in's own function finds."""

from pathlib import Path

import pytest
from sage_infer.errors import SageInferError
from sage_infer.models import add_model, model_state
from sage_infer.models.samples import sage_infer_models
from sage_infer.specs import ModelSpec


def test_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_finder.py").write_text(
        "from sage_infer.errors import ModelNotFound\n"
        f"def here(name): return {str(tmp_path)!r}\n"
        "def gone(name): return '/no/such/place'\n"
        "def none(name): raise ModelNotFound(f'{name} is elsewhere')\n"
        "def bad(name): raise RuntimeError('oops')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def by(function: str) -> ModelSpec:
        return ModelSpec(name="m", model_type="llm", resolver=f"foreign_finder:{function}")

    assert add_model(by("here")) == tmp_path
    assert model_state(by("none")).reason == "m is elsewhere"
    assert model_state(by("bad")).reason == "foreign_finder:bad failed: RuntimeError: oops"
    assert (
        model_state(by("gone")).reason == "foreign_finder:gone returned /no/such/place, which does not exist"
    )
    assert "foreign_finder:lost failed: AttributeError" in model_state(by("lost")).reason
    assert model_state(ModelSpec(name="m", model_type="llm")).state == "broken"
    with pytest.raises(SageInferError, match="'m' cannot be added: m is elsewhere"):
        add_model(by("none"))


def test_samples_are_declared_whole() -> None:
    smollm2, minilm = sage_infer_models()
    assert (smollm2.name, smollm2.model_type) == ("smollm2-135m", "llm")
    assert (minilm.name, minilm.model_type) == ("minilm", "embedding")
    for sample in (smollm2, minilm):
        assert sample.wheel is not None
        assert "==" in sample.wheel
        assert sample.sha256 is not None
        assert sample.download_bytes is not None
        assert sample.license == "Apache-2.0"
        assert (sample.check_file or "").startswith(sample.file or "?")
