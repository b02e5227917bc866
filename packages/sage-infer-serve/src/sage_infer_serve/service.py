"""Shared state of the endpoints: backend, settings, metrics and open requests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from msgspec import Struct
from sage_infer.contracts import (
    HybridAnswerReading,
    HybridInferenceBackend,
    HybridTokenizing,
    ModelReporting,
    ModelSettings,
)
from sage_infer.errors import SageInferError
from sage_infer.names import ModelType
from sage_infer.schemas import CapabilityDescriptor, ModelDescriptor

from sage_infer_serve.admission import Admission
from sage_infer_serve.http.auth import APIKey, Keys
from sage_infer_serve.http.errors import HTTPError, limited
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.headers import IGNORED_FIELDS
from sage_infer_serve.http.intake import Intake
from sage_infer_serve.http.shares import LoopShares
from sage_infer_serve.http.turns import LoopTime
from sage_infer_serve.settings import GatewaySettings
from sage_infer_serve.watch.observe import Recorder
from sage_infer_serve.watch.tracing import Tracing
from sage_infer_serve.weight import check_weight

__all__ = ["Decode", "Service"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAMED = 16  # maximum ignored fields named in a response
_BODIES = 16  # of the largest size that are held together
_REMEMBERED = 4096  # maximum pairs of key and field to log, as clients choose the names

_VERSION = importlib.metadata.version("sage-infer-serve")

log = logging.getLogger("sage_infer.serve")


class Decode(Protocol):
    """Decodes and validates one kind of request body, with ``fields``; raises ``HTTPError``."""

    fields: frozenset[str]

    def __call__(self, body: bytes, /) -> Any: ...

    def ignored_fields(self, body: bytes, /) -> list[str]: ...


_BOM = b"\xef\xbb\xbf"


class Service:
    """State shared by all requests of a gateway. The caller starts and closes the backend.

    Attributes:
        backend: answers the requests.
        reading, tokenizing: the backend, if it has these contracts; to look at all methods of a contract for each
            request would cost more than the call.
        recorder: counts and latencies.
        tracing: None unless enabled in the settings.
        started: time of creation, in seconds since the epoch.
        draining: whether new work is rejected, because the server is shutting down.
        loading: whether work is rejected because the backend has not started yet.
        open: requests in progress in an engine.
        admission: estimates the wait of a new request.
        shares: paces clients that use much of the event loop.
        loop_time: bounds what large deltas take of one iteration of the event loop.
        all_metrics: the metrics of all gateways at this address, for Prometheus; None if this is the only one.
    """

    def __init__(
        self,
        backend: HybridInferenceBackend,
        settings: GatewaySettings,
        keys: Iterable[APIKey],
        decoders: Mapping[type[Struct], Decode],
    ) -> None:
        self.backend = backend
        self.reading = backend if isinstance(backend, HybridAnswerReading) else None
        self.tokenizing = backend if isinstance(backend, HybridTokenizing) else None
        self._reporting = backend if isinstance(backend, ModelReporting) else None
        self.settings = settings
        self.keys = Keys(keys)
        self.recorder = Recorder()
        self.tracing = Tracing() if settings.tracing else None
        self.started = time.time()
        self.draining = False
        self.loading = False
        self.open: set[Exchange] = set()
        self.receiving: set[Exchange] = set()
        self.intake = Intake(_BODIES * settings.max_body_bytes)
        self.shares = LoopShares()
        self.loop_time = LoopTime()
        self.all_metrics: Callable[[], Awaitable[bytes]] | None = None
        self._admissions: dict[str, Admission] = {}
        # Models of which each client has a queue; asking costs a refusal's time.
        self._with_tenants: set[str] = set()
        self._decoders = decoders
        self._ignored: set[tuple[str, str]] = set()
        self._types: dict[str, ModelType] = {}
        self._ids: dict[str, str] = {}  # of the same names, among them aliases
        self._fingerprints: dict[str, tuple[float, str]] = {}

    async def read(self, exchange: Exchange, kind: type[Struct]) -> Any:
        """Read and validate the request. From now on, a disconnect of the client ends the exchange.

        Raises:
            HTTPError: the body is too long, not JSON, or a field is invalid.
        """
        body = await exchange.body(self.settings.max_body_bytes, self.intake)
        body = body.removeprefix(_BOM)  # some clients of .NET send it
        self.check_room(exchange.client)
        self.receiving.discard(exchange)
        self.open.add(exchange)
        decoder = self._decoders[kind]
        await check_weight(body, decoder.fields)
        request = decoder(body)
        if ignored := decoder.ignored_fields(body):
            self._name_ignored(exchange, ignored)
        exchange.stop_after(self.settings.request_timeout_s, "timeout")
        exchange.watch()
        return request

    def check_room(self, client: str) -> None:
        """Refuse a request while too many are open, until its answer could begin.

        Raises:
            HTTPError: 429.
        """
        limit = self.settings.max_open_requests
        if len(self.open) >= limit:
            wait = max(self._waits(client).values(), default=0.0)
            raise limited(
                f"limit of {limit} open requests reached; retry later", max(1.0, wait), code="overloaded"
            )

    def check_queues(self, types: Collection[ModelType], client: str) -> None:
        """Refuse a request for one of these types of models while all of their queues are too long.

        Checked before the body is read and decoded: under overload, refusals would take much of the time of the engine.

        Raises:
            HTTPError: 429.
        """
        target = self.settings.target_wait_s
        if target is None or not self._admissions:
            return
        waits = self._waits(client)
        if max(waits.values()) <= target:
            return
        fitting = [m.model_id for m in self.backend.list_models() if m.model_type in types]
        judged = (waits[name] if name in waits and self._is_ready(name) else 0.0 for name in fitting)
        shortest = min(judged, default=0.0)
        if shortest > target:
            raise _queued(shortest)

    def _waits(self, client: str) -> dict[str, float]:
        """Expected wait of a client's request per model with a queue."""
        return {
            name: queue.wait_s(client if name in self._with_tenants else "")
            for name, queue in self._admissions.items()
        }

    def tenant(self, model: str, client: str) -> str:
        """The tenant of a client's requests in a model's queue: one for all if the backend ignores tenants."""
        if self.claims(model, "tenant"):
            self._with_tenants.add(model)
            return client
        self._with_tenants.discard(model)
        return ""

    def admit(self, model: str, client: str) -> Admission:
        """The queue of a model, if a new request would begin in time.

        Raises:
            HTTPError: it would not (429).
        """
        if self.type_of(model) is None:
            return Admission()  # the backend says that there is no such model
        model_id = self._ids[model]
        admission = self._admissions.get(model_id)
        if admission is None:
            admission = self._admissions[model_id] = Admission()
        wait, target = admission.wait_s(self.tenant(model_id, client)), self.settings.target_wait_s
        if target is not None and wait > target and self._is_ready(model_id):
            raise _queued(wait)
        return admission

    def _is_ready(self, model_id: str) -> bool:
        """Whether the queue of a model says how fast it answers: not while the model is loading or has failed."""
        is_ready = self.backend.get_model_status(model_id).state == "ready"
        if not is_ready and model_id in self._admissions:
            self._admissions[model_id].restart()
        return is_ready

    def _name_ignored(self, exchange: Exchange, fields: list[str]) -> None:
        """Name ignored fields in the response, and once per key in the log."""
        names = [name for name in fields if _NAME.fullmatch(name)][:_NAMED]
        if len(names) < len(fields):
            names.append("...")
        exchange.extra_headers += ((IGNORED_FIELDS.encode(), ", ".join(names).encode()),)
        key = exchange.key.name if exchange.key else "-"
        for name in names:
            if (key, name) not in self._ignored and len(self._ignored) < _REMEMBERED:
                self._ignored.add((key, name))
                log.warning("key=%s %s: field %s has no effect", key, exchange.path, name)

    def type_of(self, name: str) -> ModelType | None:
        """The type of the model with this id or alias; None if unknown."""
        found: ModelType | None = self._types.get(name)
        if found is None:
            try:
                model_id = self.backend.get_model_status(name).model_id
            except SageInferError:
                return None
            kind = next(m.model_type for m in self.backend.list_models() if m.model_id == model_id)
            found = self._types[name] = kind  # known names only, so the cache is bounded
            self._ids[name] = model_id
        return found

    def is_text_only(self, name: str) -> bool:
        return self.type_of(name) != "multimodal"

    def claims(self, model: str, feature: str) -> bool:
        """Whether the backend of a loaded model reports a feature; False if it reports no capability."""
        capability = self._capability(model)
        return capability is not None and capability.supports(feature)

    def features(self, model: str) -> tuple[str, ...] | None:
        """The features of a model's backend; None if it reports no capability, as before it is loaded."""
        capability = self._capability(model)
        return None if capability is None else capability.features

    def context_length(self, model: ModelDescriptor) -> int | None:
        """Maximum sequence length in tokens: the effective one if the model is loaded, else the configured one."""
        capability = self._capability(model.model_id)
        return model.max_sequence_length if capability is None else capability.max_sequence_length

    def fingerprint(self, model: str) -> str:
        """Of this build, a model and its settings: answers with one fingerprint come from equal systems."""
        status = self.backend.get_model_status(model)
        known = self._fingerprints.get(status.model_id)
        if known is None or known[0] != status.since:
            name, backend = status.model_id, self.backend
            descriptor = next((m for m in backend.list_models() if m.model_id == name), None)
            settings = backend.get_model_settings(name) if isinstance(backend, ModelSettings) else {}
            text = repr((_VERSION, descriptor, self._capability(name), sorted(settings.items())))
            known = status.since, "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]
            self._fingerprints[name] = known
        return known[1]

    def _capability(self, model: str) -> CapabilityDescriptor | None:
        """The capability of a loaded model; None if its backend does not report it."""
        if self._reporting is None:
            return None
        try:
            return self._reporting.get_model_capability(model)
        except SageInferError:
            return None

    def end_all(self) -> None:
        """End every open request with an error, after the timeout of the shutdown."""
        for exchange in [*self.open, *self.receiving]:
            exchange.stop("shutdown")


def _queued(wait_s: float) -> HTTPError:
    return limited(f"expected wait of {wait_s:.0f} s; retry later", wait_s, code="overloaded")
