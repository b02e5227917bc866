"""Texts and token ids, one or several: what prompts and inputs of embeddings may be."""

from __future__ import annotations

from typing import Any

from sage_infer_serve.http.errors import wrong_request

__all__ = ["as_inputs"]


def as_inputs(given: str | list[Any], name: str) -> list[str | list[int]]:
    """A list of texts and lists of token ids; a flat list of token ids is one input.

    Raises:
        HTTPError: an input is empty, or token ids and other inputs stand beside each other.
    """
    inputs: list[Any] = [given] if isinstance(given, str) else given
    if inputs and all(isinstance(item, int) for item in inputs):
        inputs = [inputs]
    for index, item in enumerate(inputs):
        where = name if isinstance(given, str) else f"{name}[{index}]"
        if isinstance(item, int):
            raise wrong_request(
                f"{where}: token ids of one input stand alone, or in a list of their own", where
            )
        if not item:
            raise wrong_request(f"{where} is empty; expected at least one character", where)
    return inputs
