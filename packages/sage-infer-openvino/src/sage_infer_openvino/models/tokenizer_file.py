"""Reads ``tokenizer.json``, whose steps are programs over every text: what they may do to its length is checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sage_infer.errors import InvalidRequest, ModelFileError
from tokenizers import Tokenizer

__all__ = ["encoded", "is_text", "read_tokenizer"]

_MOST_TOKENS = 2**24  # ids of a vocabulary are as many as its rows; published ones have up to 2**18
_MOST_GROWTH = 1000  # of a text's length; published tokenizers have up to about 200
_MOST_COPIES = 4  # of a text in its token ids
_STEPS = ("normalizers", "pretokenizers", "decoders", "processors")  # of a sequence
_GROWTH = {"ByteLevel": 4, "Precompiled": 30}  # characters per character
_NEVER_EMPTY = re.compile(r"(?:\\?[^*?|(){}^$\\])+\+?(?:\{[1-9][\d,]*\})?")  # patterns without empty matches

T = TypeVar("T")


def read_tokenizer(path: Path) -> Tokenizer:
    """
    Raises:
        ModelFileError: the file does not exist, is damaged, or from a later version of ``tokenizers``.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: not found; the model's folder needs its tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # `tokenizers` raises a bare Exception for any problem with the file.
    except Exception as error:
        raise ModelFileError(f"{path}: not supported by the installed `tokenizers`: {error}") from error
    _check_vocabulary(tokenizer.get_vocab(with_added_tokens=True), str(path))
    _check_growth(tokenizer, str(path))
    # A tokenizer.json may configure truncation and padding, but prompts must not change silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        encoded(tokenizer.encode, "a")
    except InvalidRequest as error:
        raise ModelFileError(f"{path}: cannot encode a text ({error}); the file is damaged") from error
    return tokenizer


def _check_vocabulary(vocabulary: Mapping[str, int], where: str) -> None:
    if not vocabulary:
        raise ModelFileError(f"{where}: the vocabulary is empty; the file is damaged")
    largest = max(vocabulary.values())
    if largest > _MOST_TOKENS:
        raise ModelFileError(f"{where}: a token has the id {largest}, expected at most {_MOST_TOKENS}")


def is_text(value: object) -> bool:
    """Whether a value is a string without lone surrogates, which JSON can have and UTF-8 cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeError:
        return False


def encoded(encode: Callable[[T], Any], given: T) -> Any:
    """The encoding of a text or of several.

    Raises:
        InvalidRequest: a text has lone surrogates, as bytes that are not UTF-8 become, or the tokenizer fails on it.
    """
    try:
        return encode(given)
    except (UnicodeError, TypeError) as error:
        raise InvalidRequest(f"a text is not valid Unicode: {error}") from error
    except BaseException as error:  # inconsistent files make `tokenizers` panic, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidRequest(f"the model's tokenizer fails on a text ({error}); send another one") from error


def _check_growth(tokenizer: Tokenizer, where: str) -> None:
    """Steps that multiply a text, one after another, would use up the memory."""
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        step = getattr(tokenizer, name)
        if step is not None and _growth(json.loads(step.__getstate__())) > _MOST_GROWTH:
            raise ModelFileError(f"{where}: its {name} makes texts more than {_MOST_GROWTH} times as long")
    if tokenizer.post_processor is not None:
        copies = _copies(json.loads(tokenizer.post_processor.__getstate__()))
        if copies > _MOST_COPIES:
            raise ModelFileError(f"{where}: its post_processor repeats a text {copies} times")


def _inner(step: Mapping[str, Any]) -> list[Any] | None:
    return next((step[name] for name in _STEPS if name in step), None)


def _growth(step: Mapping[str, Any]) -> float:
    """Maximum length of a step's result, for each character of its text."""
    steps = _inner(step)
    if steps is not None:
        return math.prod(map(_growth, steps))
    kind = step.get("type")
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind != "Replace":
        return _GROWTH.get(str(kind), 1)
    content, pattern = len(step["content"]), step["pattern"]
    if "String" in pattern:
        matched = len(pattern["String"])
        return max(1.0, content / matched) if matched else 1 + content
    return max(1, content) if _NEVER_EMPTY.fullmatch(pattern["Regex"]) else 1 + content


def _copies(step: Mapping[str, Any]) -> int:
    steps = _inner(step)
    if steps is not None:
        return math.prod(map(_copies, steps))
    return sum("Sequence" in piece for piece in step.get("single", ())) or 1
