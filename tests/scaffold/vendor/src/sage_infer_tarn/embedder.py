"""Tarn's embedder: hashed letter triples; those that are frequent in the model's file weigh less."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sage_infer_tarn.engine import read_model

__all__ = ["Embedder"]


def triples(text: str) -> Iterator[str]:
    padded = f" {text.lower()} "
    return (padded[at : at + 3] for at in range(len(padded) - 2))


class Embedder:
    """Counts of triples of one file."""

    dim = 128
    max_sequence_length = 1024

    def __init__(self, path: Path) -> None:
        self.seen = Counter(triples(read_model(path).decode("utf-8", "replace")))

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def vectors(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        return [self.vector("".join(map(chr, tokens))) for tokens in batch]

    def vector(self, text: str) -> list[float]:
        numbers = [0.0] * self.dim
        for triple in triples(text):
            place = zlib.crc32(triple.encode("utf-8", "surrogatepass")) % self.dim
            numbers[place] += 1 / (1 + self.seen[triple])
        length = math.hypot(*numbers)
        return [number / length for number in numbers]

    def close(self) -> None:
        self.seen.clear()
