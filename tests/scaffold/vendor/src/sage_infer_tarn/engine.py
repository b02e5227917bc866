"""Tarn's engine: how often each byte follows the bytes before it, counted in a file of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sage_infer.errors import ModelFileError
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import ModelSizes

__all__ = ["Engine", "read_model", "sizes"]

MAGIC = b"tarn 1\n"
END, ORDER, LIMIT = 256, 16, 1024


def read_model(path: Path) -> bytes:
    """The text of a model file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    if not data.startswith(MAGIC):
        raise ModelFileError(
            f"{path} is no model of tarn; expected the first line {MAGIC.decode().strip()!r}"
        )
    return data.removeprefix(MAGIC)


def sizes(*, model: ModelDescriptor) -> ModelSizes:
    """Memory of a loaded model."""
    data = read_model(Path(model.model_path))
    dim = 128 if model.model_type == "embedding" else None
    return ModelSizes(weight_bytes=200 * ORDER * len(data), max_sequence_length=LIMIT, embedding_dim=dim)


class Engine:
    """Counts of one file."""

    vocabulary = END + 1
    end_token_ids = (END,)
    max_sequence_length = LIMIT

    def __init__(self, path: Path) -> None:
        self.counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for paragraph in read_model(path).split(b"\n\n"):
            tokens = [*paragraph.strip(), END]
            for at, token in enumerate(tokens):
                for size in range(min(ORDER, at) + 1):
                    self.counts[tuple(tokens[at - size : at])][token] += 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token != END).decode("utf-8", "replace")

    def weights(self, token_ids: Sequence[int]) -> Mapping[int, float]:
        found = dict.fromkeys(range(self.vocabulary), 0.01)
        for size in range(min(ORDER, len(token_ids)) + 1):
            context = tuple(token_ids[len(token_ids) - size :])
            for token, count in self.counts.get(context, Counter()).items():
                found[token] += count * 4.0**size
        return found

    def close(self) -> None:
        self.counts.clear()
