"""Messages between the process that owns the replicas and its gateway processes.

They are pickled and stay on this machine, within one version of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.settings import GatewaySettings

from sage_llm.gateways.shares import Use
from sage_llm.manager.models import ServedModel
from sage_llm.manager.replica import Drained, ReplicaWord
from sage_llm.manager.settings import ControlPlaneSettings

__all__ = [
    "AnnouncedReplica",
    "Answer",
    "Emptied",
    "Failed",
    "Order",
    "Question",
    "Ready",
    "Replicas",
    "Uses",
]


@frozen(kw_only=True)
class Order:
    """What a gateway process is started with.

    Attributes:
        number: number of the process, from 0.
        models: the models to serve; their replicas are announced.
        gateway: settings of the API, with the port.
        drain_s: time for requests to end on a replica that is stopped.
    """

    number: int
    models: tuple[ServedModel, ...]
    settings: ControlPlaneSettings
    gateway: GatewaySettings
    keys: tuple[APIKey, ...]
    drain_s: float


@frozen(kw_only=True)
class AnnouncedReplica:
    """A replica as its owner sees it.

    Attributes:
        word: see ``Replica``.
        descriptor, pid: those of the running process; None if there is none.
    """

    spec: ReplicaSpec
    word: ReplicaWord
    reason: str = ""
    descriptor: InstanceDescriptor | None = None
    pid: int | None = None

    @property
    def generation(self) -> int:
        return 0 if self.descriptor is None else self.descriptor.generation


@frozen
class Replicas:
    """All replicas, after a change. Those that are not in it are gone."""

    replicas: tuple[AnnouncedReplica, ...]


@frozen
class Uses:
    """What a gateway has used of the limits of keys by name, or what all others have; keys without news are left out.

    Attributes:
        is_past: whether it was used before the gateway was started.
    """

    uses: Mapping[str, Use]
    is_past: bool = False


@frozen
class Question:
    """A call of a method of the control plane in the gateway process."""

    number: int
    method: str
    arguments: Mapping[str, Any]


@frozen
class Ready:
    """The gateway accepts requests."""


@frozen
class Failed:
    """The gateway could not start."""

    message: str


@frozen
class Emptied:
    """The gateway has no request left on a replica that is to be stopped, and no connection to it."""

    drained: Drained
    generation: int


@frozen
class Answer:
    """Result of a question; ``error`` is set if there is none."""

    number: int
    result: Any
    error: str = ""
