"""Results of embedding and reranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import field, frozen

from sage_infer.checks import Each, Instance, Integer, Number, Text, as_tuple
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema
from sage_infer.schemas.generation import Usage

__all__ = ["EmbeddingResult", "RerankHit", "RerankResult"]

_FLOAT32 = 4


def _as_bytes(buffer: Any) -> memoryview:
    return memoryview(buffer).cast("B")


@frozen(kw_only=True)
class EmbeddingResult:
    """Embedding vectors in the order of the texts, stored in one buffer.

    The result is a sequence of vectors: it supports ``len(result)``, ``result[i]`` and iteration, and each
    vector is a ``memoryview`` of float32. It is not a JSON schema: a batch can have a hundred thousand floats,
    so they stay in the buffer until ``vectors`` converts them to lists.

    Attributes:
        model_id: model that computed the vectors.
        dim: length of each vector.
        data: all vectors, concatenated, as native-endian float32 (a bytes-like object).
        usage: token counts of the texts.
        text_tokens: number of tokens of each text, whose sum is ``usage.prompt_tokens``; null if unknown. Callers
            that join the texts of several requests in one call need it to account for each request.
    """

    model_id: str
    dim: int
    data: memoryview = field(converter=_as_bytes)
    usage: Usage
    text_tokens: tuple[int, ...] | None = None

    def __attrs_post_init__(self) -> None:
        if self.dim < 1 or self.data.nbytes % (_FLOAT32 * self.dim):
            message = f"must hold whole vectors of {self.dim} float32, got {self.data.nbytes} bytes"
            raise SchemaError("EmbeddingResult", [Problem("$.data", message)])
        if self.text_tokens is not None and len(self.text_tokens) != len(self):
            message = f"must have one count per vector: {len(self)}, got {len(self.text_tokens)}"
            raise SchemaError("EmbeddingResult", [Problem("$.text_tokens", message)])

    def __len__(self) -> int:
        return self.data.nbytes // (_FLOAT32 * self.dim)

    def __getitem__(self, index: int) -> memoryview[float]:
        """Return one vector as float32, without a copy; negative indices count from the end."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"vector {index} of {count}")
        start = index % count * self.dim
        return self.data.cast("f")[start : start + self.dim]

    def __iter__(self) -> Iterator[memoryview[float]]:
        return (self[index] for index in range(len(self)))

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors as lists of Python floats, ``[len(self), dim]``."""
        numbers = list(self.data.cast("f"))
        return [numbers[i * self.dim : (i + 1) * self.dim] for i in range(len(self))]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data, with the vectors as lists."""
        usage = {"prompt_tokens": self.usage.prompt_tokens, "total_tokens": self.usage.total_tokens}
        return {"model_id": self.model_id, "dim": self.dim, "vectors": self.vectors, "usage": usage}


@schema("1.0")
@frozen(kw_only=True)
class RerankHit:
    """One document's score.

    Attributes:
        index: position of the document in the request.
        score: relevance to the query; higher is more relevant. The scale depends on the model.
    """

    index: int = field(validator=Integer(ge=0))
    score: float = field(validator=Number())


@schema("1.0")
@frozen(kw_only=True)
class RerankResult:
    """Documents ordered by relevance.

    Attributes:
        model_id: model that scored the documents.
        hits: the scored documents, best first.
        usage: token counts of query and documents.
    """

    model_id: str = field(validator=Text(min_length=1))
    hits: tuple[RerankHit, ...] = field(converter=as_tuple, validator=Each(Instance(RerankHit)))
    usage: Usage = field(validator=Instance(Usage))
