"""Makes the reference implementations beside the tests importable, whatever pytest's import mode; a vendor's wheel."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

sys.path.insert(0, str(Path(__file__).parent))

TYPES = {"talker": "llm", "smollm2-135m": "llm", "minilm": "embedding", "judge": "reranker"}


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The vendor's plug-in is installed, and its models are on this machine."""
    import sage_infer.models
    from sage_infer.discovery import discover
    from sage_infer.errors import ModelNotFound
    from sage_infer.schemas import ModelDescriptor

    info = tmp_path / "site" / "kit_vendor-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-vendor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nkit-vendor = kit_vendor_plugin\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def resolve(name: str, *, model_type: Any = None, any_format: bool = False) -> Any:
        if name not in TYPES:
            raise ModelNotFound(f"no model {name!r}")
        return ModelDescriptor(model_id=name, model_type=TYPES[name], model_path="/")  # type: ignore[arg-type]

    monkeypatch.setattr(sage_infer.models, "resolve_model", resolve)
    discover.cache_clear()
    yield
    discover.cache_clear()
