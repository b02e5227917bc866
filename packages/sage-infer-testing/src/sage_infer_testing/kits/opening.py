"""Instances of the backend under test: one shared by all tests, and additional ones if a test needs them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.contracts import EngineStats
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import ServedType

from sage_infer_testing.suite import ContractSuite
from sage_infer_testing.waiting import eventually

__all__ = ["BackendSuite"]

_NUMBERS = itertools.count(1)


class BackendSuite(ContractSuite, kit=True):
    """Base of the kits for backends.

    Set ``backend_name`` and ``model`` for an installed plug-in, or override ``make_backend``.

    Attributes:
        backend_name: registered name of the backend, for ``open_backend``.
        model: model name, path or descriptor, for ``backend_name``.
        options: options for ``backend_name``.
        sequence_limit: ``max_sequence_length`` of the instance (unless the model's is smaller), to keep tests at the
            limit fast; None uses the model's own limit.
    """

    backend_name: ClassVar[str] = ""
    model: ClassVar[str | ModelDescriptor] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    sequence_limit: ClassVar[int | None] = 512
    serves: ClassVar[ServedType] = "llm"

    def make_backend(self) -> Any:
        """Return a backend that is not started. Called several times; several instances can exist simultaneously."""
        from sage_infer.backends import create_backend

        if not self.backend_name or not self.model:
            pytest.fail(f"{type(self).__name__} must set backend_name and model, or override make_backend()")
        return create_backend(self.backend_name, model=self._descriptor(), serves=self.serves, **self.options)

    def _descriptor(self) -> ModelDescriptor:
        from sage_infer.backends import find_backend
        from sage_infer.models import resolve_model

        model = self.model
        if isinstance(model, str):
            spec = find_backend(self.backend_name).spec
            model = resolve_model(
                model,
                model_type=None if self.serves == "hybrid" else self.serves,
                any_format=spec is not None and spec.sizes is not None,
            )
        limits = [limit for limit in (model.max_sequence_length, self.sequence_limit) if limit is not None]
        return attrs.evolve(model, max_sequence_length=min(limits, default=None))

    # --- instances

    _ids: list[str]

    async def _started(self) -> Any:
        backend = self.make_backend()
        try:
            await backend.start()
        except BaseException:
            await backend.close()
            raise
        return backend

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """A started instance, shared by all tests of the class. Requests with ids of ``new_id`` end with the test."""
        shared = self.share(
            request, "backend", lambda: self.run(self._started()), lambda b: self.run(b.close())
        )
        self._ids = []
        yield shared
        for request_id in self._ids:
            self.run(shared.abort(request_id))

    def new_id(self) -> str:
        """Return a unique request id."""
        self._ids.append(f"kit-{next(_NUMBERS)}")
        return self._ids[-1]

    @pytest.fixture
    def closed_backend(self, request: pytest.FixtureRequest) -> Any:
        """An instance that was started and closed, shared by the tests of closed instances."""

        async def start_and_close() -> Any:
            backend = await self._started()
            await backend.close()
            return backend

        return self.share(request, "closed", lambda: self.run(start_and_close()), lambda _: None)

    # --- waiting

    async def idle(self, backend: Any, *, free_blocks: int | None = None) -> EngineStats:
        """Wait until no request is open and ``free_blocks`` KV blocks are free, and return the gauges."""
        __tracebackhide__ = True

        def is_idle() -> bool:
            stats = backend.stats()
            return not (stats.running or stats.waiting) and free_blocks in (None, stats.kv_blocks_free)

        def what() -> str:
            stats = backend.stats()
            wanted = "" if free_blocks is None else f" with {free_blocks} KV blocks free"
            return (
                f"the instance did not become idle{wanted}: stats() say running={stats.running}, "
                f"waiting={stats.waiting}, kv_blocks_free={stats.kv_blocks_free}"
            )

        await eventually(is_idle, what, within_s=self.settle_s)
        await asyncio.sleep(0)
        stats: EngineStats = backend.stats()
        return stats
