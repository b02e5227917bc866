"""The n-gram model: how often each byte follows each context, and the probabilities that follow from it."""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import ModelFileError

__all__ = ["END", "VOCABULARY", "Ngrams", "find", "read_corpus"]

END = 256  # the token after a paragraph; all others are bytes
VOCABULARY = 257


def find(name: str) -> Path:
    """Where the files of this wheel's model are (``ModelSpec.resolver``)."""
    return Path(__file__).parent / "model"


def read_corpus(folder: Path) -> bytes:
    """The tensor ``corpus`` of a model folder; ``ModelFileError`` where it is missing or damaged."""
    file = folder / "model.safetensors"
    try:
        data = file.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        start, end = json.loads(data[8 : 8 + length])["corpus"]["data_offsets"]
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{file} holds no n-gram corpus: {error}; run make_model.py again") from None
    return data[8 + length :][start:end]


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
