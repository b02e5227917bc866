"""The kits, one module each. pytest rewrites their assertions, so that failures show both sides."""

import pytest

pytest.register_assert_rewrite(*[f"{__name__}.{kit}" for kit in (
    "embedding", "embedding_calls", "executor", "generation", "hardware", "hybrid", "kv", "lifecycle", "options",
    "plugin", "recordings", "reporting",
)])  # fmt: skip
