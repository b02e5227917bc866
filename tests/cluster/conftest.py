"""The tests here start servers with the helper of the control plane's tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "packages" / "sage-llm" / "tests"))
