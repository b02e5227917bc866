"""The models that a control plane serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_infer.sdk.fields import Each, Integer, Text

__all__ = ["ServedModel"]


@frozen(kw_only=True)
class ServedModel:
    """A model and its replicas.

    Attributes:
        descriptor: the model, with the path of its files.
        backend: name of the backend that runs it.
        options: options of the backend.
        replicas: number of replicas.
        aliases: additional names for requests.
        environment: environment variables of the replicas.
    """

    descriptor: ModelDescriptor
    backend: str = field(validator=Text(min_length=1))
    options: Mapping[str, Any] = field(factory=dict)
    replicas: int = field(default=1, validator=Integer(ge=0))
    aliases: tuple[str, ...] = field(default=(), validator=Each(Text(min_length=1)))
    environment: Mapping[str, str] = field(factory=dict)

    def spec(self, number: int) -> ReplicaSpec:
        """The specification of the replica with this number."""
        return ReplicaSpec(
            replica_id=f"{self.descriptor.model_id}/{number}",
            backend=self.backend,
            model=self.descriptor,
            options=dict(self.options),
            environment=dict(self.environment),
        )
