"""``SageKVConnector``: vLLM's connector interface over ``SchedulerSide`` and ``WorkerSide``.

vLLM makes one in the engine core and one in each worker, and imports the class in the main process. An exception in a
hook would stop the engine, so it is logged, and the request computes its prompt.
"""

from __future__ import annotations

import logging
from typing import Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from sage_infer_vllm.kv.facts import facts_of_connector
from sage_infer_vllm.kv.plan import FRONT_END, ArenaCopies, PageLoad
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.served import ServedSettings, open_served
from sage_infer_vllm.kv.worker_side import WorkerSide

__all__ = ["SageKVConnector", "Step", "WorkerFacts"]

_log = logging.getLogger("vllm.sage_infer")


class Step(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not there when types are checked
    """What the scheduler sends to the workers with each step."""

    def __init__(self, loads: tuple[PageLoad, ...], stored: ArenaCopies | None = None) -> None:
        self.loads = loads
        self.stored = stored


class WorkerFacts(KVConnectorHandshakeMetadata):  # type: ignore[misc]  # as above
    """What a worker says about its KV cache."""

    def __init__(self, kv: dict[str, Any], page_bytes: int) -> None:
        self.kv = kv
        self.page_bytes = page_bytes


class SageKVConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]  # as above
    """Holds the KV of a prefill, and loads held or imported KV for a decode."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.scheduler = SchedulerSide(int(vllm_config.cache_config.block_size))
        self.worker = WorkerSide()
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config or {}
        self._store = None if extra.get(FRONT_END) else ServedSettings.of(extra)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # otherwise vLLM recomputes a preempted request before it hands its KV over

    # --- in the engine core

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self.scheduler.bind(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        # Failures end the start: a store that was asked for and cannot be used is an error of the configuration.
        facts = metadata.get(0)
        if self._store is not None and isinstance(facts, WorkerFacts):
            store = open_served(
                self._vllm_config, self._store, facts=facts.kv, page_bytes=facts.page_bytes,
                version=str(vllm.__version__), blocks=int(self._kv_cache_config.num_blocks),
            )  # fmt: skip
            self.scheduler.serve(store)

    def on_new_request(self, request: Any) -> None:
        try:
            self.scheduler.arrived(request)
        except Exception:
            _log.exception("KV of request %s is not looked up", request.request_id)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        try:
            return self.scheduler.matched_tokens(request, num_computed_tokens), False
        except Exception:
            _log.exception("KV of request %s is not loaded", request.request_id)
            return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        # No failure is caught here: blocks that vLLM expects to be loaded would be read empty.
        self.scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        saves: list[tuple[int, int]] = []
        try:
            saves = self.scheduler.saves(scheduler_output)
        except Exception:
            _log.exception("KV of this step is not saved")
        return Step(self.scheduler.planned(), self.scheduler.copies(scheduler_output, saves))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        try:
            return False, self.scheduler.finished(request, block_ids)
        except Exception:
            _log.exception("KV of request %s is not held", request.request_id)
            return False, None

    def shutdown(self) -> None:
        try:
            self.scheduler.close()
        except Exception:
            _log.exception("the KV store is not closed")

    # --- in a worker

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        if self._store is None:
            return None
        return WorkerFacts(
            facts_of_connector(self._vllm_config, self._kv_cache_config), self.worker.page_bytes
        )

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        try:
            self.worker.register(kv_caches, int(self._kv_cache_config.num_blocks))
        except Exception:
            _log.exception("the pages of the KV cache cannot be copied")

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        step = self._get_connector_metadata()
        try:
            self.worker.load(step.loads)
        except Exception:
            _log.exception("KV is computed, as it cannot be loaded")
        try:
            if step.stored is not None:
                self.worker.load_stored(step.stored)
        except Exception:
            _log.exception("stored KV is computed, as it cannot be loaded")

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are complete when ``start_load_kv`` returns."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Pages are saved when a step has computed all layers."""

    def wait_for_save(self) -> None:
        step = self._get_connector_metadata()
        try:
            if step.stored is not None:
                self.worker.save(step.stored)
        except Exception:
            _log.exception("KV is not saved")

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker.take_failed()
