"""Common base of backends: life cycle, open requests and counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Literal

from attrs import define, field

from sage_infer.contracts import EngineStats, Health, ProgressReport
from sage_infer.errors import ConfigError, EngineDead
from sage_infer.names import InstanceType, Precision
from sage_infer.schemas import (
    CapabilityDescriptor,
    InstanceDescriptor,
    InstanceReport,
    ModelDescriptor,
)
from sage_infer.sdk.open_requests import OpenRequest, OpenRequests
from sage_infer.sdk.reporting import Reporter

__all__ = ["BaseBackend", "Figures"]


@define
class Figures:
    """Counters of a backend; ``stats`` and ``report`` read them."""

    running: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    step_s: float | None = None
    waiting_since: dict[str, float] = field(factory=dict)  # by request id, the oldest first


class BaseBackend:
    """Common base of ``BaseInferenceBackend`` and ``BaseEmbeddingBackend``. A subclass sets the attributes and
    overrides ``load``.

    Attributes:
        name: registered name of the backend.
        features: claimed features, in addition to ``deadline`` and ``reports``, which every subclass has.
        instance_type: instance type of the capability.
        hardware: hardware name of the capability.
        precisions: supported precisions.
        max_sequence_length: the engine's maximum sequence length, in tokens.
        max_batch_size: maximum number of requests computed simultaneously.
        model: descriptor of the model that the backend was opened with.
        requests: the open requests.
        figures: the counters.

    Args:
        max_queue: maximum number of open requests; further ones raise ``Overloaded``.
    """

    name: ClassVar[str]
    features: ClassVar[Sequence[str]] = ()
    instance_type: ClassVar[InstanceType] = "general"
    hardware: ClassVar[str] = "cpu"
    precisions: ClassVar[Sequence[Precision]] = ("fp32",)
    max_sequence_length: int = 2048
    max_batch_size: int = 8

    def __init__(self, model: ModelDescriptor, *, max_queue: int = 64) -> None:
        if type(max_queue) is not int or max_queue < 1:
            raise ConfigError(
                f"option max_queue of {self.name} must be a positive integer, got {max_queue!r}"
            )
        self.model = model
        self.max_sequence_length = min(
            model.max_sequence_length or self.max_sequence_length, self.max_sequence_length
        )
        self.max_batch_size = model.max_batch_size or self.max_batch_size
        self.requests, self.figures = OpenRequests(max_queue), Figures()
        self._state: Literal["starting", "ok", "dead"] = "starting"
        self._reporter = Reporter(self.name, model.model_id)
        self._progress: ProgressReport = _ignore

    # --- methods for subclasses to override

    def load(self, report: ProgressReport) -> None:
        """Load the model. Called in a thread; ``report(stage, share)`` reports progress.

        Raises:
            ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: the model cannot be loaded.
        """

    def unload(self) -> None:
        """Free the resources of ``load``. Called once in a thread, after every request has ended."""

    # --- the contract

    def on_progress(self, report: ProgressReport) -> None:
        self._progress = report

    async def start(self) -> None:
        if self._state != "starting":
            raise EngineDead(f"{self.name} was started before; open a new one")
        self._progress("loading", None)
        await asyncio.to_thread(self.load, self._progress)
        if self._health().status == "dead":  # meanwhile
            await asyncio.to_thread(self.unload)
            raise EngineDead(f"{self.name} was closed while it started; open a new one")
        self._slots = asyncio.Semaphore(self.max_batch_size)
        self._state = "ok"
        self._reporter.started(self.get_capability())

    async def close(self) -> None:
        was, self._state = self._state, "dead"
        self.requests.cancel_all("close")
        if was == "ok":
            for _ in range(self.max_batch_size):  # with all slots taken, no request computes
                await self._slots.acquire()
            await asyncio.to_thread(self.unload)

    async def abort(self, request_id: str) -> None:
        self.requests.abort(request_id)

    async def health(self) -> Health:
        return self._health()

    def stats(self) -> EngineStats:
        figures = self.figures
        oldest = next(iter(figures.waiting_since.values()), None)
        return EngineStats(
            running=figures.running,
            waiting=max(len(self.requests) - figures.running, 0),
            finished=self.requests.finished,
            prompt_tokens=figures.prompt_tokens,
            output_tokens=figures.output_tokens,
            oldest_wait_s=0.0 if oldest is None else time.monotonic() - oldest,
            steps=figures.steps,
            step_s=figures.step_s,
        )

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name=self.name,
            instance_type=self.instance_type,
            hardware_backend=self.hardware,
            max_batch_size=self.max_batch_size,
            max_sequence_length=self.max_sequence_length,
            supported_precisions=tuple(self.precisions),
            features=self.claims,
        )

    def describe(self) -> InstanceDescriptor:
        self.check_running()
        return self._reporter.describe()

    def report(self) -> InstanceReport:
        return self._reporter.report(self.stats(), self._health())

    # --- for subclasses

    @property
    def claims(self) -> tuple[str, ...]:
        """Return ``features`` and the features implemented by this class."""
        return tuple(dict.fromkeys([*self.features, "deadline", "reports"]))

    @asynccontextmanager
    async def computing(self, request: OpenRequest) -> AsyncIterator[None]:
        """Wait for one of the ``max_batch_size`` slots, and hold it in this block.

        Raises:
            RequestCancelled: the request was cancelled while it waited.
        """
        waiting = self.figures.waiting_since
        waiting[request.request_id] = time.monotonic()
        try:
            await self._slots.acquire()
        finally:
            waiting.pop(request.request_id, None)
        self.figures.running += 1
        try:
            request.check()
            yield
        finally:
            self.figures.running -= 1
            self._slots.release()

    def check_running(self) -> None:
        """Raise ``EngineDead`` unless the backend accepts requests."""
        if self._state != "ok":
            raise EngineDead(f"{self.name} is not running: {self._health().reason}; open a new one")

    def _health(self) -> Health:
        reasons = {"starting": "the model is not loaded yet", "ok": "", "dead": "the backend was closed"}
        return Health(status=self._state, reason=reasons[self._state])


def _ignore(stage: str, share: float | None) -> None:
    """Discard progress reports."""
