"""A KV store that the engine core opens itself, for ``vllm serve``: its configuration names no front end of ours.

The engine core asks the store when a request arrives, and has the scheduler ask again until the store has answered.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from sage_infer.contracts import block_keys, root_key
from sage_infer.errors import ConfigError, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema

from sage_infer_vllm.kv.claims import handover_features
from sage_infer_vllm.kv.recent import RecentKeys
from sage_infer_vllm.kv.stored import StoredPrompt
from sage_infer_vllm.kv.traffic import Fetched, StoreTraffic, open_traffic
from sage_infer_vllm.models.kv_schema import describe_kv
from sage_infer_vllm.models.weights import weight_ids

__all__ = ["ServedStore", "ServedSettings", "open_served"]

_OPTIONS = ("kv_store", "kv_store_wait_s")
_IDLE_WAIT_S = 0.01  # of the engine core, when it has nothing to compute but waits for pages
_COLLECT_S = 0.01
_SHARE_CACHED = 2


@frozen
class ServedSettings:
    """What ``kv_connector_extra_config`` says."""

    kv_store: str | Mapping[str, Any]
    wait_s: float

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> ServedSettings:
        """Raises:
        ConfigError: an option is missing, unknown or malformed.
        """
        unknown = sorted(set(extra) - set(_OPTIONS))
        if unknown:
            raise ConfigError(
                f"kv_connector_extra_config has no option {unknown[0]!r}; it has {' and '.join(_OPTIONS)}"
            )
        store, wait_s = extra.get("kv_store"), extra.get("kv_store_wait_s", 1.0)
        if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not wait_s > 0:
            raise ConfigError(f"kv_store_wait_s must be a number of seconds above 0, got {wait_s!r}")
        if not isinstance(store, str | Mapping):
            raise ConfigError(
                f"kv_store must be the name of a KV store, or {{store: NAME, …}} with its options; got {store!r}"
            )
        return cls(store, float(wait_s))


@define(eq=False)
class _Asked:
    """A request that is not scheduled yet, and what the store says."""

    keys: list[bytes]
    root: bytes
    first: int
    answer: Future[Fetched] = field(factory=Future)
    later: Fetched | None = None  # pages that came while it waited
    prompt: StoredPrompt | None = None

    @property
    def pages(self) -> Fetched:
        """Those that have come; the store has answered."""
        return self.later or self.answer.result()


class ServedStore:
    """The store of one engine core. All methods are called in its one thread.

    Args:
        traffic: it is closed with this object.
        kv_model: name of the weights and of how they are computed.
        schema: of the KV cache.
        cached_pages: see ``RecentKeys``.
    """

    def __init__(
        self, traffic: StoreTraffic, *, kv_model: str, schema: KVCacheSchema, cached_pages: int
    ) -> None:
        self._traffic = traffic
        self._kv_model = kv_model
        self._schema = schema
        self._recent = RecentKeys(cached_pages)
        self._asked: dict[str, _Asked] = {}
        self._loading: list[tuple[int, Fetched]] = []  # by the number of the step that loads them
        self._saving = asyncio.Event()  # of the thread's loop
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="sage-kv-served", daemon=True).start()
        self._closed = False
        self._fetching: set[asyncio.Task[None]] = set()
        self._collecting = asyncio.run_coroutine_threadsafe(self._collect(), self._loop)

    def arrived(self, request: Any) -> None:
        """Ask the store for a new request's pages. Requests with an adapter, media or embeddings do not use it."""
        if request.lora_request is not None or request.mm_features or request.pooling_params is not None:
            return
        if request.prompt_token_ids is None or request.prompt_embeds is not None:
            return
        salt = (request.cache_salt or "").encode()
        tokens = list(request.prompt_token_ids)
        keys = list(block_keys(self._kv_model, self._schema, tokens, salt=salt))
        first = self._recent.leading(keys)
        asked = _Asked(keys, root_key(self._kv_model, self._schema, salt), first)
        self._asked[request.request_id] = asked
        asked.answer = asyncio.run_coroutine_threadsafe(self._fetch(request.request_id, asked), self._loop)

    async def _fetch(self, name: str, asked: _Asked) -> Fetched:
        fetched = await self._traffic.fetch(asked.keys, cached=asked.first)
        if fetched.is_deferred:
            task = asyncio.create_task(self._fetch_later(name, asked))
            self._fetching.add(task)
            task.add_done_callback(self._fetching.discard)
        return fetched

    async def _fetch_later(self, name: str, asked: _Asked) -> None:
        """Give a request its pages while it waits for its turn."""
        keys = asked.keys[asked.first :]
        asked.later = await self._traffic.fetch_later(lambda: keys if self._asked.get(name) is asked else [])

    def is_pending(self, request: Any) -> bool:
        """Whether the store has still to answer, which it does within a limit."""
        asked = self._asked.get(request.request_id)
        return asked is not None and not asked.answer.done()

    def prompt(self, request: Any, computed: int) -> StoredPrompt | None:
        """What the store has answered so far; None for a request that does not use it, or has its blocks."""
        asked = self._asked.get(request.request_id)
        if asked is None:
            return None
        if asked.prompt is None:
            asked.prompt = StoredPrompt(self._traffic.arena, list(asked.keys), asked.root, first=asked.first)
        asked.prompt.slots = asked.pages.slots
        if computed < asked.first * self._schema.page_size:  # the cache has dropped some of them
            self._recent.forget(asked.keys)
        return asked.prompt

    def allocated(self, request: Any, step: int, loaded_tokens: int) -> None:
        """The request's blocks are allocated; step number ``step`` loads its pages if there are any."""
        asked = self._asked.pop(request.request_id, None)
        if asked is None:
            return
        self._recent.use(asked.keys)
        if loaded_tokens:
            self._loading.append((step, asked.pages))

    def planned(self, *, computes: bool, saves: bool) -> None:
        """A step is planned. Without anything to compute, wait a little for the store instead of asking it again."""
        loaded = self._traffic.arena.loaded_step
        self._loading = [(step, pages) for step, pages in self._loading if step > loaded]
        if saves:
            self._loop.call_soon_threadsafe(self._saving.set)
        pending = [asked.answer for asked in self._asked.values() if not asked.answer.done()]
        if pending and not computes:
            wait(pending, _IDLE_WAIT_S, return_when="FIRST_COMPLETED")

    def finished(self, request: Any) -> None:
        """The request has ended, perhaps before it was scheduled."""
        asked = self._asked.pop(request.request_id, None)
        if asked is not None:
            asked.answer.cancel()

    def close(self) -> None:
        """Save what is complete, and close the store."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._saving.set)
        wait([self._collecting])
        self._loop.call_soon_threadsafe(self._end)
        self._traffic.close()

    def _end(self) -> None:
        for task in self._fetching:
            task.cancel()
        self._loop.call_soon(self._loop.stop)

    async def _collect(self) -> None:
        while not self._closed:
            await self._saving.wait()
            self._saving.clear()
            while self._traffic.arena.has_pending and not self._closed:
                self._traffic.collect()
                await asyncio.sleep(_COLLECT_S)


def open_served(config: Any, settings: ServedSettings, *, facts: Mapping[str, Any], page_bytes: int, version: str,
                blocks: int) -> ServedStore:  # fmt: skip
    """Open the store for an engine core.

    Args:
        config: vLLM's configuration.
        facts: ``kv.facts`` of the worker.
        page_bytes: bytes of a page that the worker copies.
        version: vLLM's version.
        blocks: pages of the KV cache.

    Raises:
        BackendUnavailable, ConfigError, OutOfMemory: see ``open_traffic``.
        UnsupportedFeature: this engine's pages cannot be stored.
    """
    model, folder = config.model_config, Path(config.model_config.model)
    if not folder.is_dir():
        raise UnsupportedFeature(
            f"a KV store needs the model as a folder, whose content names its KV; {model.model!r} is none"
        )
    parallel, kernels = config.parallel_config, {layer["backend"] for layer in facts["layers"]}
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1 or kernels != {"CPU_ATTN"}:
        raise UnsupportedFeature("below vllm serve, a KV store is supported on one CPU device only")
    schema, reason = describe_kv(
        facts,
        cache_dtype=str(config.cache_config.cache_dtype),
        version=version,
        ranks=1,
        total_heads=int(model.get_total_num_kv_heads()),
    )
    features, unsplit = handover_features(schema, facts, page_bytes)
    if not all(layer["isa"] for layer in facts["layers"]):  # it decides the layout, which keys must contain
        unsplit, features = "the kernel of a layer is not known", ()
    if schema is None or not features:
        raise UnsupportedFeature(f"a KV store is not supported for this engine: {reason or unsplit}")
    weights = weight_ids(folder)
    kv_model = f"{weights.content} {model.dtype} {model.quantization}"
    traffic = open_traffic(
        settings.kv_store,
        kv_model=kv_model,
        weights_id=weights.weights_id,
        schema=schema,
        blocks=blocks,
        sequence_tokens=int(model.max_model_len),
        step_tokens=int(config.scheduler_config.max_num_batched_tokens),
        wait_s=settings.wait_s,
    )
    cached = blocks // _SHARE_CACHED if config.cache_config.enable_prefix_caching else 0
    return ServedStore(traffic, kv_model=kv_model, schema=schema, cached_pages=cached)
