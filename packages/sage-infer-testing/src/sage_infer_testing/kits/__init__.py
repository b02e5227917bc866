"""The kits, a module each. Their assertions are rewritten by pytest, so that failures show both sides."""

import pytest

pytest.register_assert_rewrite(*[f"{__name__}.{kit}" for kit in (
    "embedding", "generation", "hardware", "hybrid", "kv_store", "lifecycle", "plugin", "recordings", "transport",
)])  # fmt: skip
