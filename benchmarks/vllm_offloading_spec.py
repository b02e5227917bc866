"""An out-of-tree spec for vLLM's ``OffloadingConnector``: its own manager and scheduler, on a CPU.

vLLM's ``CPUOffloadingSpec`` moves blocks with CUDA streams and refuses CPUs. This one keeps everything of it but the
copies, which are plain ones. For ``benchmarks/vllm_kv_reuse.py``, with vLLM 0.32.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

__all__ = ["HostSpec"]


class HostWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies blocks in the thread of the model."""

    def __init__(self, tensors: list[torch.Tensor], chunks: int) -> None:
        self._engine = tensors
        self._host = [torch.empty((chunks, tensor.shape[1]), dtype=tensor.dtype) for tensor in tensors]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._engine, src_spec.block_ids, self._host, dst_spec.block_ids)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._host, src_spec.block_ids, self._engine, dst_spec.block_ids)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        pass  # every job has ended when it was submitted

    def _copy(self, job_id: int, source: Any, from_ids: Any, target: Any, to_ids: Any) -> bool:
        began, pairs = time.monotonic(), list(zip(from_ids.tolist(), to_ids.tolist(), strict=True))
        for here, there in zip(source, target, strict=True):
            for one, other in pairs:
                there[other].copy_(here[one])
        size = len(pairs) * sum(tensor.shape[1] for tensor in source)
        self._done.append(TransferResult(job_id, True, size, time.monotonic() - began))
        return True


class HostSpec(CPUOffloadingSpec):  # type: ignore[misc]
    """Blocks in main memory beside an engine on a CPU; a chunk is one block."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self.blocks_per_chunk != 1:
            raise ValueError(f"chunks of one block only, not of {self.blocks_per_chunk}")
        return HostWorker([cache.tensor for cache in kv_caches.tensors], self.num_chunks)
