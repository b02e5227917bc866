"""Guided decoding: masks of allowed tokens, by llguidance.

The vocabulary is converted to a tree, here and in the child process that tests constraints, which the first guided
request starts. Most constraints compile in milliseconds, and are cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict

import llguidance
import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding

from sage_infer_openvino.engine.grammar.compile_queue import CompileQueue
from sage_infer_openvino.engine.grammar.form import CompileError, first_line, matcher_of, vocabulary_of
from sage_infer_openvino.engine.grammar.trial import NotStarted, Trial
from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["GrammarMatcher", "GrammarCompiler"]

_REFUSED = 256  # constraints that are remembered as impossible
_KEPT_CHARACTERS = 1 << 20  # total size of cached constraints, as a measure of their memory


class GrammarMatcher:
    """One completion's matcher state. Belongs to the engine thread."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Mask of allowed tokens, ``[vocab_size]``. Where the output may end, it includes the end-of-sequence
        tokens.

        Raises:
            InvalidRequest: the constraint is too complex, or a token was not allowed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(f"the constraint cannot be satisfied: {first_line(self._matcher)}")
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> bool:
        """Advance by a token; returns whether the output is complete."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def failed(self) -> bool:
        """Whether a token was not allowed, or the constraint turned out to be too complex."""
        return bool(self._matcher.is_error())

    def copy(self) -> GrammarMatcher:
        return GrammarMatcher(self._matcher.deep_copy())


class GrammarCompiler:
    """Compiles constraints for one model's vocabulary. Safe to use from several threads; may take seconds."""

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        # Some published models have more tokens than rows of the embedding, or end-of-sequence ids outside both.
        self._n_vocab = max(vocab_size, tokenizer.vocab_size)
        self._eos = [index for index in tokenizer.eos_token_ids if 0 <= index < self._n_vocab]
        self._compiling = threading.Lock()
        self._queue = CompileQueue[GrammarMatcher]()
        self._lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._trial: Trial | None = None
        self._kept: OrderedDict[tuple[str, str], GrammarMatcher] = OrderedDict()
        self._kept_characters = 0
        self._refused: OrderedDict[bytes, CompileError] = OrderedDict()  # by digest of kind and text

    def load(self) -> None:
        """Convert the vocabulary, which holds the GIL for a quarter of a second; else the first constraint does it."""
        if self._eos and self._vocabulary is None:
            self._vocabulary = vocabulary_of(self._tokenizer.to_json(), self._n_vocab, self._eos)

    def compile(self, constraint: GuidedDecoding) -> GrammarMatcher:
        """A compiled constraint in its initial state; each completion needs its own copy.

        Raises:
            InvalidRequest: it is malformed, impossible or too complex.
            UnsupportedFeature: llguidance does not implement a part of it, or there is no end-of-sequence
                token.
        """
        name = _as_text(constraint)
        found = self._find(name)
        if found is None:
            with self._compiling:
                found = self._find(name)
                if found is None:
                    try:
                        found = self._compiled(*name)
                    except NotStarted as error:
                        raise _as_error(error) from error
                    except CompileError as error:
                        self._refuse(name, error)
                        raise _as_error(error) from error
                    self._keep(name, found)
        return found.copy()

    async def compiled(self, constraint: GuidedDecoding, tenant: str = "") -> GrammarMatcher:
        """``compile`` without blocking the event loop; cached constraints return immediately.

        Raises:
            Overloaded: the tenant has too many waiting constraints.
        """
        found = self._find(_as_text(constraint))
        if found is not None:
            return found.copy()

        def compile_() -> GrammarMatcher:
            try:
                return self.compile(constraint)
            except InvalidRequest as error:
                if isinstance(error.__cause__, CompileError) and error.__cause__.is_expensive:
                    self._queue.rest(tenant)
                raise

        return await asyncio.wrap_future(self._queue.submit(tenant, compile_))

    def close(self) -> None:
        """End the child process. Safe to call twice."""
        self._queue.close()
        with self._compiling:
            if self._trial is not None:
                self._trial.close()

    def _find(self, name: tuple[str, str]) -> GrammarMatcher | None:
        """The constraint, if it is kept; raises the error with which it was refused before."""
        digest = _digest(name)
        with self._lock:
            refused = self._refused.get(digest)
            if refused is not None:
                self._refused.move_to_end(digest)
                raise _as_error(refused)
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._kept[name]

    def _keep(self, name: tuple[str, str], matcher: GrammarMatcher) -> None:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = matcher
                self._kept_characters += len(name[1])
            while self._kept_characters > _KEPT_CHARACTERS:
                (_, text), _ = self._kept.popitem(last=False)
                self._kept_characters -= len(text)

    def _refuse(self, name: tuple[str, str], error: CompileError) -> None:
        """Remember that it cannot be compiled: clients that repeat it do not occupy the compiler."""
        with self._lock:
            self._refused[_digest(name)] = error
            if len(self._refused) > _REFUSED:
                self._refused.popitem(last=False)

    def _compiled(self, kind: str, text: str) -> GrammarMatcher:
        if not self._eos:
            raise UnsupportedFeature("guided decoding requires a model with an end-of-sequence token")
        if self._trial is None:
            self._trial = Trial(self._tokenizer.to_json(), self._n_vocab, self._eos)
        form = self._trial.run(kind, text)
        self.load()
        assert self._vocabulary is not None
        return GrammarMatcher(matcher_of(self._vocabulary, form))


def _as_error(error: CompileError) -> UnsupportedFeature | InvalidRequest:
    if error.is_unsupported:
        return UnsupportedFeature(f"the constraint is not supported: {error}")
    return InvalidRequest(f"the constraint cannot be compiled: {error}")


def _digest(name: tuple[str, str]) -> bytes:
    return hashlib.sha256("\0".join(name).encode("utf-8", "surrogatepass")).digest()


def _as_text(constraint: GuidedDecoding) -> tuple[str, str]:
    """Kind and text of a constraint."""
    match constraint:
        case GuidedDecoding(json_schema=schema) if schema is not None:
            return "json_schema", json.dumps(schema)
        case GuidedDecoding(regex=str(regex)):
            return "regex", regex
        case GuidedDecoding(grammar=str(text)):
            return "grammar", text
        case _:
            return "choice", json.dumps(constraint.choice, ensure_ascii=False)
