"""Prompts and embedding inputs: one or several texts or lists of token ids."""

from __future__ import annotations

from typing import Any

from sage_infer_serve.http.errors import wrong_request

__all__ = ["MOST_INPUTS", "as_inputs"]

MOST_INPUTS = 2048


def as_inputs(given: str | list[Any], name: str, n: int = 1) -> list[str | list[int]]:
    """A list of texts and lists of token ids; a flat list of token ids is one input.

    Raises:
        HTTPError: an input is empty, token ids are mixed with other inputs, or the number of inputs times ``n``
            completions exceeds the limit.
    """
    inputs: list[Any] = [given] if isinstance(given, str) else given
    if inputs and isinstance(inputs[0], int) and all(isinstance(item, int) for item in inputs):
        inputs = [inputs]
    if len(inputs) * n > MOST_INPUTS:
        times = f" times n = {n}" if n > 1 else ""
        message = (
            f"{name}: {len(inputs)} inputs{times} exceed {MOST_INPUTS}; split them into several requests"
        )
        raise wrong_request(message, name)
    for index, item in enumerate(inputs):
        where = name if isinstance(given, str) else f"{name}[{index}]"
        if isinstance(item, int):
            raise wrong_request(
                f"{where}: token ids cannot be mixed with texts; put them into their own list", where
            )
        if not item:
            raise wrong_request(f"{where} is empty; expected at least one character", where)
    return inputs
