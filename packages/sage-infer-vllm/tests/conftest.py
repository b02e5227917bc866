"""What the tests of this package share: the sample models, and one real engine where vLLM is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from sage_infer.discovery import model_specs
from sage_infer.errors import SageInferError
from sage_infer.models import add_model
from sage_infer.schemas import ModelDescriptor

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE / "disaggregation"),
    str(HERE / "stores"),
]  # for vllm_toys and the like, whatever pytest's import mode

if TYPE_CHECKING:
    from vllm_live import Live


def _sample(name: str) -> Path:
    try:
        return add_model(model_specs()[name])
    except SageInferError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def smollm2() -> ModelDescriptor:
    """SmolLM2-135M-Instruct as a GGUF, which is converted when an engine first starts with it."""
    return ModelDescriptor(model_id="smollm2", model_type="llm", model_path=str(_sample("smollm2-135m")))


@pytest.fixture(scope="session")
def minilm() -> ModelDescriptor:
    """The sentence-transformers folder of all-MiniLM-L6-v2."""
    return ModelDescriptor(model_id="minilm", model_type="embedding", model_path=str(_sample("minilm")))


@pytest.fixture(scope="session")
def live(smollm2: ModelDescriptor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """SmolLM2 in float32 on a real engine, with the adapter ``noise``."""
    from vllm_live import Live, write_adapter

    folder = write_adapter(tmp_path_factory.mktemp("adapters") / "noise", layers=30, hidden=576, kv=192)
    engine = Live(smollm2, adapters={"noise": str(folder)})
    yield engine
    engine.close()
