"""The kits, a module each. Their assertions are rewritten by pytest, so that failures show both sides."""

import pytest

pytest.register_assert_rewrite(*[f"{__name__}.{kit}" for kit in (
    "embedding", "embedding_calls", "executor", "generation", "hardware", "hybrid", "kv", "lifecycle", "options",
    "plugin", "recordings", "reporting",
)])  # fmt: skip
