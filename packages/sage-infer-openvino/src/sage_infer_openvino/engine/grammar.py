"""Guided decoding: which tokens may come next, by llguidance.

The first guided request takes a moment, because the vocabulary is made into a tree for it. Grammars are compiled in
milliseconds, and kept.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding

from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["GrammarMatcher", "GrammarCompiler"]

_KEPT = 64  # compiled constraints
# How json.dumps writes it, which is what models have seen most. Free white space would let a model write nothing else.
_JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarMatcher:
    """One completion's place in its constraint. Belongs to the engine thread."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, ``[vocab_size]``. Where the output may end, the end-of-sequence ones are among
        them.

        Raises:
            InvalidRequest: the constraint turns out to be too complex, or a token was not one of the allowed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(f"the constraint cannot be followed: {_first_line(self._matcher)}")
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> bool:
        """Go on by a token; whether the output is complete, so that nothing can come after it."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def copy(self) -> GrammarMatcher:
        return GrammarMatcher(self._matcher.deep_copy())


class GrammarCompiler:
    """Compiles constraints for one model's vocabulary. Safe to use from several threads; may take a second."""

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[str, GrammarMatcher] = OrderedDict()

    def compile(self, constraint: GuidedDecoding) -> GrammarMatcher:
        """A constraint at its beginning; each completion needs its own copy.

        Raises:
            InvalidRequest: it is malformed or impossible.
            UnsupportedFeature: llguidance does not implement a part of it, or there is no end-of-sequence token.
        """
        grammar = _grammar(constraint)
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = self._compiled(grammar)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar)
            return self._kept[grammar].copy()

    def _compiled(self, grammar: str) -> GrammarMatcher:
        if not self._tokenizer.eos_token_ids:
            raise UnsupportedFeature("guided decoding needs a model with an end-of-sequence token")
        if self._vocabulary is None:
            self._vocabulary = llguidance.LLTokenizer(
                self._tokenizer.to_json(),
                n_vocab=self._vocab_size,
                eos_token=list(self._tokenizer.eos_token_ids),
            )
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            reason = _first_line(matcher)
            error = UnsupportedFeature if "Unimplemented" in reason else InvalidRequest
            raise error(f"the constraint cannot be compiled: {reason}")
        return GrammarMatcher(matcher)


def _grammar(constraint: GuidedDecoding) -> str:
    """The constraint in llguidance's own form."""
    match constraint:
        case GuidedDecoding(json_schema=schema) if schema is not None:
            return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_JSON_FORM)
        case GuidedDecoding(regex=str(regex)):
            return llguidance.LLMatcher.grammar_from_regex(regex)
        case GuidedDecoding(grammar=str(text)):
            try:
                return llguidance.grammar_from("grammar", text)
            except ValueError as error:
                raise InvalidRequest(f"the grammar is neither Lark nor GBNF: {error}") from error
        case _:
            return llguidance.grammar_from("choice", json.dumps(constraint.choice, ensure_ascii=False))


def _first_line(matcher: llguidance.LLMatcher) -> str:
    """The reason on one line: the first says what, and those of a regular expression's error say where."""
    lines = [line.strip() for line in matcher.get_error().partition("<state>")[0].splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("^"))[:300]
