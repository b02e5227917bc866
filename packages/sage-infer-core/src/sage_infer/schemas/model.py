"""Description of a model: its type, its files, and the limits to load it with."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Integer, Number, Text, as_tuple, optional
from sage_infer.names import ModelType, Precision, precision
from sage_infer.schemas.base import schema

__all__ = ["ModelDescriptor", "PoolingType"]

PoolingType = Literal["mean", "cls", "last"]


@schema("1.0")
@frozen(kw_only=True)
class ModelDescriptor:
    """A model that a backend can be opened with.

    Attributes:
        model_id: name of the model in requests.
        model_type: llm, embedding, reranker or multimodal.
        model_path: a local folder or file, or the address of a replica that has the model loaded
            (``http:``, ``https:`` or ``replica:``).
        device_ids: devices to load the model on; empty lets the backend choose.
        memory_gb: memory of the loaded model in GiB; null if unknown.
        max_batch_size: maximum number of sequences in a batch; null lets the backend choose.
        max_sequence_length: maximum length of prompt plus output, in tokens; null means the model's own limit.
        supported_precisions: allowed inference precisions; empty lets the backend choose.
        embedding_dim: length of the embedding vectors (embedding models).
        pooling_type: mean, cls or last (embedding models).
        max_pair_length: maximum length of query plus document, in tokens (rerankers).
    """

    model_id: str = field(validator=Text(min_length=1))
    model_type: ModelType = field(validator=Choice(get_args(ModelType)))
    model_path: str = field(validator=Text(min_length=1))
    device_ids: tuple[int, ...] = field(
        default=(), converter=as_tuple, validator=Each(Integer(ge=0), unique=True)
    )
    memory_gb: float | None = field(default=None, validator=optional(Number(ge=0)))
    max_batch_size: int | None = field(default=None, validator=optional(Integer(ge=1)))
    max_sequence_length: int | None = field(default=None, validator=optional(Integer(ge=1)))
    supported_precisions: tuple[Precision, ...] = field(
        default=(), converter=as_tuple, validator=Each(precision(), unique=True)
    )
    embedding_dim: int | None = field(default=None, validator=optional(Integer(ge=1)))
    pooling_type: PoolingType | None = field(default=None, validator=optional(Choice(get_args(PoolingType))))
    max_pair_length: int | None = field(default=None, validator=optional(Integer(ge=1)))
