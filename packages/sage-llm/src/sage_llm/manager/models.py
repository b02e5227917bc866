"""The models that a control plane serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import evolve, field, frozen
from attrs.validators import optional
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_infer.schemas.replica import ReplicaRole
from sage_infer.sdk.fields import Each, Integer, Number, Text

from sage_llm.scaling.settings import Autoscale

__all__ = ["JoinedServer", "ServedModel", "with_autoscale"]


@frozen(kw_only=True)
class JoinedServer:
    """An OpenAI-compatible server that serves a model.

    Attributes:
        url: its address, without ``/v1``.
        api_key_env: environment variable with its API key; None sends no key.
    """

    url: str = field(validator=Text(min_length=1))
    api_key_env: str | None = None


@frozen(kw_only=True)
class ServedModel:
    """A model and its replicas.

    Attributes:
        descriptor: the model, with the path of its files.
        backend: name of the backend that runs it.
        options: options of the backend.
        replicas: number of replicas that generate.
        prefill_replicas: number of further replicas that compute prompts for them. Above 0, the role of the others is
            decode.
        prefill_options: options of the backend for these replicas, in place of those in ``options``, such as a
            ``kv_schema`` with pages of another size.
        aliases: additional names for requests.
        environment: environment variables of the replicas.
        server: dotted path of the server that runs the replicas in processes of their own; None runs them in this one.
        cpus, gpus, memory_gb: what an executor on a cluster reserves for each replica: CPUs, accelerators (a fraction
            shares one with other replicas) and GiB of memory.
        devices: devices of the replicas, by replica id; the executor chooses those of others.
        joined: OpenAI-compatible servers that serve this model, too.
        autoscale: how the number of replicas follows the load; None keeps it. ``replicas`` is the number at the start.
    """

    descriptor: ModelDescriptor
    backend: str = field(validator=Text(min_length=1))
    options: Mapping[str, Any] = field(factory=dict)
    replicas: int = field(default=1, validator=Integer(ge=0))
    prefill_replicas: int = field(default=0, validator=Integer(ge=0))
    prefill_options: Mapping[str, Any] = field(factory=dict)
    aliases: tuple[str, ...] = field(default=(), validator=Each(Text(min_length=1)))
    environment: Mapping[str, str] = field(factory=dict)
    server: str | None = None
    cpus: float = field(default=1.0, validator=Number(ge=0))
    gpus: float = field(default=0.0, validator=Number(ge=0))
    memory_gb: float | None = field(default=None, validator=optional(Number(gt=0)))
    devices: Mapping[str, tuple[int, ...]] = field(factory=dict)
    joined: tuple[JoinedServer, ...] = ()
    autoscale: Autoscale | None = None

    @property
    def count(self) -> int:
        """Number of replicas on this machine."""
        return self.replicas + self.prefill_replicas

    def spec(self, number: int, role: ReplicaRole | None = None) -> ReplicaSpec:
        """The specification of the replica with this number; its role is prefill, or by default that of the others."""
        name = f"p{number}" if role == "prefill" else f"{number}"
        replica_id = f"{self.descriptor.model_id}/{name}"
        return ReplicaSpec(
            replica_id=replica_id,
            backend=self.backend,
            model=self.descriptor,
            options={**self.options, **(self.prefill_options if role == "prefill" else {})},
            environment=dict(self.environment),
            server=self.server,
            device_ids=self.devices.get(replica_id, ()),
            cpus=self.cpus,
            gpus=self.gpus,
            memory_gb=self.memory_gb,
            role=role or ("decode" if self.prefill_replicas else "general"),
        )

    @property
    def specs(self) -> list[ReplicaSpec]:
        """The replicas to start: those of this machine, then the joined ones."""
        name = self.descriptor.model_id
        here = [self.spec(number, "prefill") for number in range(self.prefill_replicas)]
        here += [self.spec(number) for number in range(self.replicas)]
        return here + [
            ReplicaSpec(
                replica_id=f"{name}@{urlsplit(server.url).netloc}",
                backend="openai",
                model=evolve(self.descriptor, model_path=server.url),
                options={} if server.api_key_env is None else {"api_key_env": server.api_key_env},
            )
            for server in self.joined
        ]


def with_autoscale(model: ServedModel, settings: Autoscale) -> ServedModel:
    """The model with a number of replicas that follows its load.

    Raises:
        InvalidRequest: no replica of it can be started or stopped.
    """
    name = model.descriptor.model_id
    if model.joined:
        raise InvalidRequest(
            f"model {name!r} is served by joined servers, which are not started or stopped here; give --autoscale for "
            "models without --join"
        )
    if model.backend == "openai":
        raise InvalidRequest(f"model {name!r} runs on a server of others, so it cannot be scaled")
    if model.prefill_replicas and settings.most < 2:
        raise InvalidRequest(
            f"model {name!r} has prefill and decode replicas, so that the maximum of --autoscale must be at least 2, "
            f"got {settings.bounds}"
        )
    return evolve(model, autoscale=settings)
