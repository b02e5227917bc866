"""Base class of the backends: starting, closing and restarting vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sage_infer.contracts import EngineStats, Health, ProgressReport
from sage_infer.errors import EngineDead, RequestCancelled, SageInferError, UnsupportedFeature
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport, ModelDescriptor
from sage_infer.sdk import Reporter

from sage_infer_vllm.engine.capability import Service
from sage_infer_vllm.engine.opening import import_compat, open_model
from sage_infer_vllm.engine.running import Running
from sage_infer_vllm.installed import check_installed
from sage_infer_vllm.models.kv_options import cache_arguments
from sage_infer_vllm.models.quantization import NONE, Quantization
from sage_infer_vllm.platform import UPSTREAM, Platform
from sage_infer_vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["BaseVLLMBackend"]


def _ignore(stage: str, share: float | None) -> None:
    """A progress callback that does nothing."""


class BaseVLLMBackend:
    """Base of the backends.

    Attributes:
        platform: the table of the vendor's vLLM; subclasses set it.
        runner: which of vLLM's runners serves the model.
        model: what the backend was opened with.
    """

    platform: ClassVar[Platform] = UPSTREAM
    runner: ClassVar[Literal["generate", "pooling"]] = "generate"

    def __init__(
        self, model: ModelDescriptor, settings: VLLMSettings, kv_schema: Mapping[str, Any] | None
    ) -> None:
        self.model = model
        self._progress: ProgressReport = _ignore
        self._settings = settings
        self._kv_schema = kv_schema
        self._quantization: Quantization = NONE
        cache_arguments(kv_schema, self.platform, None)  # reject early, by the platform's table
        self._running: Running | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: SageInferError | None = None
        self._closed = False
        self._sleeping = False
        self._reporter = Reporter(self.name, model.model_id)

    @property
    def name(self) -> str:
        """The name that the backend is registered under."""
        return self.platform.backend_name

    def served_features(self, engine: VLLMEngine) -> Sequence[str]:
        """Features of any engine of this kind."""
        raise NotImplementedError

    # --- life cycle

    def on_progress(self, report: ProgressReport) -> None:
        self._progress = report

    async def start(self) -> None:
        self._check_open()
        if self._running is None:
            check_installed(self.platform)
            self._loop = asyncio.get_running_loop()
            await self._start()

    async def _start(self) -> None:
        self._sleeping = False
        self._reporter.new_generation()
        running = await open_model(
            self.model,
            Service(
                name=self.name, platform=self.platform, runner=self.runner, features=self.served_features
            ),
            self._settings,
            kv_schema=self._kv_schema,
            quantization=self._quantization,
            on_progress=self._progress,
            instance_id=self._reporter.instance_id,
        )
        if self._closed:  # during the start
            await running.close()
            self._check_open()
        self._running = running
        self._reporter.started(
            running.capability,
            address=f"inproc:{self._reporter.instance_id}",
            key_space=running.key_space,
            adapters=running.adapters,
            versions={"vllm": running.compat.version(), "torch": running.compat.torch_version()},
        )

    async def close(self) -> None:
        self._closed = True
        running, self._running = self._running, None
        restarting, self._restarting = self._restarting, None
        if restarting is not None:
            restarting.cancel()
            await asyncio.wait([restarting])
        if running is not None:
            await _end(running)

    async def abort(self, request_id: str) -> None:
        running = self._running
        if running is not None:
            running.requests.abort(request_id)
            running.held.drop(request_id)
            await running.requests.settled()

    async def health(self) -> Health:
        return self._health()

    def _health(self) -> Health:
        if self._closed:
            return Health(status="dead", reason="the backend was closed")
        if self._restarting is not None:
            return Health(status="starting", reason="the engine restarts with another quantization profile")
        if self._failure is not None:
            return Health(status="dead", reason=str(self._failure))
        if self._running is None:
            return Health(status="starting", reason="the model is not loaded yet")
        stopped = self._running.stopped
        return Health(status="dead", reason=stopped) if stopped else Health(status="ok")

    def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0) if self._running is None else self._running.stats()

    def get_capability(self) -> CapabilityDescriptor:
        """Read from the engine's configuration and its worker's KV cache, without constants."""
        return self._ready().capability

    def describe(self) -> InstanceDescriptor:
        self._ready()
        return self._reporter.describe()

    def report(self) -> InstanceReport:
        return self._reporter.report(self.stats(), self._health(), sleeping=self._sleeping)

    # --- sleeping

    async def sleep(self, level: int = 1) -> None:
        """Free device memory: level 1 moves the weights to host memory, level 2 drops them. Requests wait.

        Raises:
            UnsupportedFeature: the platform does not support it, or ``enable_sleep_mode`` is not set.
        """
        running = await self._available()
        if not running.capability.supports("sleep"):
            raise UnsupportedFeature(
                "this engine cannot sleep; on a CUDA platform open it with engine_options={enable_sleep_mode: true}"
            )
        await running.engine.llm.sleep(level)
        self._sleeping = True

    async def wake(self) -> None:
        """Undo ``sleep``.

        Raises:
            UnsupportedFeature: see ``sleep``.
        """
        running = await self._available()
        if not running.capability.supports("sleep"):
            raise UnsupportedFeature("this engine does not support sleep, so it cannot wake")
        await running.engine.llm.wake_up()
        self._sleeping = False

    # --- restart

    def _restart_later(self) -> None:
        """Restart a running engine with the current configuration after its open requests."""
        if self._running is not None and self._loop is not None and not self._closed:
            self._restarting = self._loop.create_task(self._restart(self._restarting))

    async def _restart(self, earlier: asyncio.Task[None] | None) -> None:
        this = self._restarting
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            running, self._running = self._running, None
            if running is not None:
                await running.drained()
                await _end(running)
            await self._start()
        except SageInferError as error:
            self._failure = error
        finally:
            if self._restarting is this:
                self._restarting = None

    async def _available(self) -> Running:
        """The running engine, after a pending restart."""
        self._check_open()
        while self._restarting is not None:
            await asyncio.wait([self._restarting])
        return self._ready()

    def _device(self) -> str:
        """vLLM's device type; imports vLLM."""
        return str(import_compat().current_platform.device_type)

    # --- states

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the backend was closed; open a new one")

    def _ready(self) -> Running:
        self._check_open()
        if self._failure is not None:
            raise EngineDead(f"the engine could not restart: {self._failure}")
        if self._running is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        if self._running.stopped:
            raise self._running.dead()
        return self._running


async def _end(running: Running) -> None:
    running.requests.fail_all(
        lambda request_id: RequestCancelled(
            f"request {request_id} ended because the backend was closed", by="close"
        )
    )
    await running.close()
