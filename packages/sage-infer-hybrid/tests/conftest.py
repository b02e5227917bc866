"""What the tests of this package share: the sample models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sage_infer.discovery import model_specs
from sage_infer.errors import SageInferError
from sage_infer.models import add_model

sys.path.insert(0, str(Path(__file__).parent))  # for hybrid_fakes, whatever pytest's import mode


@pytest.fixture(scope="session")
def sample_models() -> None:
    """SmolLM2 and MiniLM are on this machine."""
    for name in ("smollm2-135m", "minilm"):
        try:
            add_model(model_specs()[name])
        except SageInferError as error:
            pytest.fail(str(error), pytrace=False)
