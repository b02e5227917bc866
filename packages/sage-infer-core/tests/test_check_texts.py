"""What no embedding backend takes for a text."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.contracts import check_texts
from sage_infer.errors import InvalidRequest


@pytest.mark.parametrize(
    ("texts", "truncate", "message"),
    [
        ("one text", "error", "must be a list of texts"),
        (["a", ""], "error", "text 1 is empty"),
        (["a", 5], "error", "text 1 must be a string or a list of token ids, got int"),
        (["a"], "start", "truncate must be 'error' or 'end', got 'start'"),
    ],
)
def test_what_is_no_text(texts: Any, truncate: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_texts(texts, truncate)


def test_texts_and_token_ids_are_texts() -> None:
    check_texts(["a", [1, 2], (3,)], "end")
    check_texts([], "error")
