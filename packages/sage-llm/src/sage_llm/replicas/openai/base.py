"""Common base of the backends on OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import define
from sage_infer.contracts import EngineStats, Health
from sage_infer.errors import ConfigError, EngineDead, ModelNotFound, SageInferError
from sage_infer.names import InstanceType
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport, ModelDescriptor
from sage_infer.sdk import OpenRequests, Reporter

from sage_llm.replicas.openai.client import ServerClient, listed
from sage_llm.replicas.openai.fields import Dialect

__all__ = ["ServerBackend"]

_DIALECTS: dict[str, Dialect] = {"vllm": "vllm", "sage-infer": "sage-infer"}
_BATCH = 256
_UNKNOWN = 1 << 20  # tokens, where the server does not report its maximum; it refuses longer requests itself


@define
class _Counts:
    running: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0


class ServerBackend:
    """A model on a server. The subclasses send the requests.

    Load figures count the requests of this object only; those of other clients of the server are unknown.

    Args:
        model: the model; ``model_path`` is the address of the server, ``model_id`` the model's name there.
        api_key_env: name of the environment variable with the API key.
        dialect: openai, vllm or sage-infer; None detects it by the owner in the server's list of models.
    """

    name = "openai"
    instance_type: InstanceType = "general"

    def __init__(
        self, model: ModelDescriptor, *, api_key_env: str | None = None, dialect: Dialect | None = None
    ) -> None:
        if dialect not in (None, "openai", "vllm", "sage-infer"):
            raise ConfigError(f"dialect must be openai, vllm or sage-infer, got {dialect!r}")
        self.model = model
        self.server = ServerClient(model.model_path, api_key_env)
        self.requests, self.counts = OpenRequests(), _Counts()
        self._given: Dialect | None = dialect
        self.dialect: Dialect = dialect or "openai"
        self.max_length = model.max_sequence_length
        self._state: Literal["starting", "ok", "dead"] = "starting"
        self._reporter = Reporter(self.name, model.model_id)

    # --- life cycle

    async def start(self) -> None:
        """Connect to the server.

        Raises:
            EngineDead: it cannot be reached.
            ModelNotFound: it does not serve the model.
            SageInferError: it refuses the API key, or its list of models is not one.
        """
        if self._state != "starting":
            raise EngineDead("the backend was started before; open a new one")
        await self.server.open()
        rows = listed(await self.server.get("/v1/models"), self.server.url)
        row = next((row for row in rows if row["id"] == self.model.model_id), None)
        if row is None:
            known = ", ".join(row["id"] for row in rows) or "none"
            raise ModelNotFound(
                f"{self.server.url} does not serve {self.model.model_id!r}; it serves {known}"
            )
        if self._given is None:
            self.dialect = _DIALECTS.get(row.get("owned_by", ""), "openai")
        lengths = [length for length in (self.max_length, row.get("max_model_len")) if length]
        self.max_length = min(lengths, default=None)
        await self.prepare(row)
        self._state = "ok"
        self._reporter.started(self.get_capability(), address=self.server.url)

    async def prepare(self, row: Mapping[str, Any]) -> None:
        """Find out what else the server does. Called once with the model's row, before the backend is ready."""

    async def close(self) -> None:
        self._state = "dead"
        self.requests.cancel_all("close")
        await self.server.close()

    async def abort(self, request_id: str) -> None:
        self.requests.abort(request_id)

    async def health(self) -> Health:
        if self._state == "starting":
            return Health(status="starting", reason="start() has not been called")
        if self._state == "dead":
            return Health(status="dead", reason="the backend was closed")
        try:
            await self.server.get("/v1/models")
            return Health(status="ok")
        except EngineDead as error:
            return Health(status="dead", reason=str(error))
        except SageInferError as error:
            return Health(status="degraded", reason=str(error))

    def stats(self) -> EngineStats:
        counts = self.counts
        return EngineStats(
            running=counts.running,
            waiting=max(len(self.requests) - counts.running, 0),
            finished=self.requests.finished,
            prompt_tokens=max(counts.prompt_tokens - counts.cached_tokens, 0),
            output_tokens=counts.output_tokens,
            prefix_hit_tokens=counts.cached_tokens,
            steps=counts.steps,
        )

    def features(self) -> tuple[str, ...]:
        """Return the features of the server."""
        raise NotImplementedError

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name=self.name,
            instance_type=self.instance_type,
            hardware_backend="cpu",  # this process computes nothing
            max_batch_size=self.model.max_batch_size or _BATCH,
            max_sequence_length=self.max_length or _UNKNOWN,
            supported_precisions=self.model.supported_precisions or ("fp32",),
            features=self.features(),
        )

    def describe(self) -> InstanceDescriptor:
        self.check_running()
        return self._reporter.describe()

    def report(self) -> InstanceReport:
        status: Any = self._state
        return self._reporter.report(self.stats(), Health(status=status))

    def check_running(self) -> None:
        """Raise ``EngineDead`` unless the backend accepts requests."""
        if self._state != "ok":
            raise EngineDead(f"the backend of {self.server.url} is {self._state}; open a new one")
