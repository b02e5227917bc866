"""A vendor's engines, and ``kit_vendor_plugin``, which registers them."""

from __future__ import annotations

import os
from typing import Any

from attrs import evolve
from kit_reference.embedding import ReferenceEmbedder
from kit_reference.hybrid import ReferenceHybrid
from kit_reference.llm import ALL_FEATURES, ReferenceLLM
from kit_reference.request import Request
from kit_reference.store import ReferenceStore
from kit_reference.transport import ReferenceTransport
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema, ModelDescriptor, TransportSettings, Usage


class ToyLLM(ReferenceLLM):
    name = "toy"

    def __init__(self, model: ModelDescriptor, *, claims: str = "all") -> None:
        super().__init__(ALL_FEATURES if claims == "all" else tuple(claims.split(",")))
        self.model = model


class MyEngine(ToyLLM):
    """The one that the README tests: it counts a token too many."""

    name = "my-engine"

    def settle(self, request: Request) -> None:
        finish = request.stream.finish

        def finish_wrongly(reason: Any, usage: Usage, timing: Any) -> None:
            finish(reason, Usage(prompt_tokens=1, completion_tokens=usage.completion_tokens + 1), timing)

        request.stream.finish = finish_wrongly  # type: ignore[method-assign]
        super().settle(request)


class ForgetfulLLM(ToyLLM):
    name = "toy-forgetful"

    async def health(self) -> Any:
        raise RuntimeError("I forgot [how] I am")


class PickyLLM(ToyLLM):
    name = "toy-picky"

    async def start(self) -> None:
        raise UnsupportedFeature("toy-picky reads no GGUF files")


class CrashingLLM(ToyLLM):
    name = "toy-crashing"

    async def health(self) -> Any:
        print("about to crash", flush=True)
        os._exit(77)


class ToyEmbedder(ReferenceEmbedder):
    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__()

    def get_capability(self) -> Any:
        import attrs

        return attrs.evolve(super().get_capability(), backend_name="toy-embedder")


class ToyHybrid(ReferenceHybrid):
    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__()


def open_store(schema: KVCacheSchema, model_id: str, *, capacity_blocks: int) -> ReferenceStore:
    return ReferenceStore(model_id, schema, capacity_blocks)


def open_leaking_store(schema: KVCacheSchema, model_id: str, *, capacity_blocks: int) -> ReferenceStore:
    """Holds twice of what it was told."""
    return ReferenceStore(model_id, schema, 2 * capacity_blocks)


def open_transport(settings: TransportSettings) -> ReferenceTransport:
    return ReferenceTransport()


class ToyCodec:
    """Pages whose bytes are stored last to first."""

    max_error = 0.0

    def matches(self, schema: KVCacheSchema) -> bool:
        return schema.format_id == "toy-2" and schema.dtype == "bf16"

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        return evolve(schema, format_id="")

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        size = schema.bytes_per_page
        if page.nbytes != size or out.nbytes != size:
            raise InvalidRequest(f"a page has {size} bytes, got {page.nbytes} and room for {out.nbytes}")
        out[:] = page[::-1]

    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        self.unpack(page, schema, out)
