"""Life cycle, open calls and figures of both backends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from sage_infer.contracts import EngineStats, Health
from sage_infer.errors import EngineDead, InvalidRequest
from sage_infer.schemas import CapabilityDescriptor, ModelDescriptor

from quokka_sage.model import LIMIT, Model, load


class Instance:
    name, instance_type, features, batch = "", "general", (), 8

    def __init__(self, model: ModelDescriptor) -> None:
        self.model, self.state, self.reason = model, "starting", "not started"
        self.limit = min(model.max_sequence_length or LIMIT, LIMIT)
        self.open: dict[str, Callable[[str], None]] = {}  # how to end each open call
        self.finished = self.prompt_tokens = self.output_tokens = self.running = 0

    async def start(self) -> None:
        self.loaded: Model = await asyncio.to_thread(load, self.model.model_path)
        self.slots = asyncio.Semaphore(self.model.max_batch_size or self.batch)
        self.state, self.reason = "ok", ""

    async def close(self) -> None:
        self.state, self.reason = "dead", "closed"
        for end in list(self.open.values()):
            end("close")

    async def abort(self, request_id: str) -> None:
        for name, end in list(self.open.items()):
            if name == request_id or name.rpartition("/")[0] == request_id:
                end("caller")

    async def health(self) -> Health:
        return Health(status=self.state, reason=self.reason)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.running, waiting=len(self.open) - self.running, finished=self.finished,
            prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens,
        )  # fmt: skip

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name=self.name, instance_type=self.instance_type, hardware_backend="cpu",
            max_batch_size=self.model.max_batch_size or self.batch, max_sequence_length=self.limit,
            supported_precisions=["fp32"], features=self.features,
        )  # fmt: skip

    def check_running(self) -> None:
        if self.state != "ok":
            raise EngineDead(f"{self.name} is {self.reason}; open a new instance")

    def new_id(self, request_id: str | None) -> str:
        if request_id is None:
            return uuid.uuid4().hex
        if any(name == request_id or name.rpartition("/")[0] == request_id for name in self.open):
            raise InvalidRequest(f"request {request_id!r} is open; wait for its end, or choose another id")
        return request_id

    def forget(self, request_id: str) -> None:
        if self.open.pop(request_id, None):
            self.finished += 1
