"""What the tests of this package share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sage_infer.discovery import model_specs
from sage_infer.errors import SageInferError
from sage_infer.models import add_model

HERE = Path(__file__).parent
KIT = HERE.parents[1] / "sage-infer-testing" / "tests"
# For plane and the kit's reference engine, whatever pytest's import mode.
sys.path[:0] = [str(HERE), str(KIT)]


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct as a GGUF."""
    return _sample("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    return _sample("minilm")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where this session keeps prepared models."""
    return str(tmp_path_factory.mktemp("prepared"))


def _sample(name: str) -> str:
    try:
        return str(add_model(model_specs()[name]))
    except SageInferError as error:
        pytest.fail(str(error), pytrace=False)
