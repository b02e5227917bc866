"""The n-gram model: how often each byte follows each context, and the probabilities that follow from it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import ModelFileError
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import ModelSizes

__all__ = ["END", "LIMIT", "MAGIC", "VOCABULARY", "Ngrams", "find", "read_corpus", "sizes"]

MAGIC = b"ngram 1\n"  # a model file's first line; the rest is the text to count in
LIMIT = 2048  # tokens in a sequence
_COUNTED = 9 * 400  # bytes of counts that a byte of text takes, in contexts of up to 8 bytes

END = 256  # the token after a paragraph; all others are bytes
VOCABULARY = 257


def find(name: str) -> Path:
    """Where this wheel's model is (``ModelSpec.resolver``)."""
    return Path(__file__).parent / "lighthouse.ngram"


def read_corpus(file: Path) -> bytes:
    """The text of a model file; ``ModelFileError`` where it is missing or of another format."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror or error}") from None
    if not data.startswith(MAGIC):
        raise ModelFileError(f"{file} is no n-gram model; make one with make_model.py")
    return data[len(MAGIC) :]


def sizes(model: ModelDescriptor) -> ModelSizes:
    """Memory of a loaded model, from its file (``BackendSpec.sizes``)."""
    text = read_corpus(Path(model.model_path))
    return ModelSizes(weight_bytes=_COUNTED * len(text), max_sequence_length=LIMIT)


class Ngrams:
    """Counts of a text. Contexts never reach across a paragraph."""

    def __init__(self, text: bytes, order: int) -> None:
        self.order = order
        self._counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for paragraph in text.split(b"\n\n"):
            tokens = [*b" ".join(paragraph.split()), END]
            for at, token in enumerate(tokens):
                for length in range(min(order, at) + 1):
                    self._counts[tuple(tokens[at - length : at])][token] += 1

    def probabilities(self, tokens: Sequence[int]) -> list[float]:
        """Of every token after these: Witten and Bell's mixture of all context lengths."""
        mixed = [1.0 / VOCABULARY] * VOCABULARY
        for length in range(min(self.order, len(tokens)) + 1):
            counts = self._counts.get(tuple(tokens[len(tokens) - length :]))
            if counts is None:
                break
            total = counts.total() + len(counts)
            mixed = [len(counts) / total * p for p in mixed]
            for token, count in counts.items():
                mixed[token] += count / total
        return mixed
