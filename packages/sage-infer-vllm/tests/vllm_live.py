"""One real engine for all tests that need one, in an event loop of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from sage_infer.schemas import ModelDescriptor
from sage_infer_testing.loop import LoopThread
from sage_infer_vllm.backend import VLLMBackend

__all__ = ["OPTIONS", "Live", "shared_memory", "write_adapter"]

T = TypeVar("T")

TIMEOUT_S = 900.0  # a start took 290 s on two cores at load 30
OPTIONS: dict[str, Any] = {
    # float32, so that a batch does not change near ties; eager, because compiling takes longer than the tests.
    "dtype": "float32", "eager": True, "kv_cache_gb": 0.75, "max_batch_size": 64, "max_sequence_length": 512,
    "max_queue": 64, "tool_parser": "hermes",
}  # fmt: skip


def shared_memory() -> set[str]:
    """Names in ``/dev/shm``."""
    return {path.name for path in Path("/dev/shm").iterdir()}


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Live:
    """A backend that is started when it is first asked for, and again after ``stop``."""

    def __init__(self, model: ModelDescriptor, **options: Any) -> None:
        self.model, self.options = model, {**OPTIONS, **options}
        self.stages: list[tuple[str, float | None]] = []
        self._loop = LoopThread("vllm-live")
        self._backend: VLLMBackend | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(coroutine, timeout_s=TIMEOUT_S)

    def make(self, **options: Any) -> VLLMBackend:
        """A backend that is not started."""
        return VLLMBackend(self.model, **{**self.options, **options})

    @property
    def backend(self) -> VLLMBackend:
        if self._backend is None:
            self.use(self.make())
        assert self._backend is not None
        return self._backend

    def use(self, backend: VLLMBackend) -> None:
        """Start this one in the place of the last."""
        self.stop()
        backend.on_progress(lambda stage, share: self.stages.append((stage, share)))
        self.run(backend.start())
        self._backend = backend

    def stop(self) -> None:
        """Close the backend; of an engine that lived vLLM must not log an error, as if its end were a crash."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        lived = self.run(backend.health()).status != "dead"
        errors, log = _Errors(), logging.getLogger("vllm")
        log.addHandler(errors)
        try:
            self.run(backend.close())
        finally:
            log.removeHandler(errors)
        assert not (lived and errors.messages), errors.messages

    def close(self) -> None:
        self.stop()
        self._loop.close()


def write_adapter(
    folder: Path, *, layers: int, hidden: int, kv: int, rank: int = 4, scale: float = 0.2
) -> Path:
    """A LoRA adapter in PEFT's format for the query and value projections, with random weights that matter."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, width in (("q_proj", hidden), ("v_proj", kv)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * scale
            tensors[f"{base}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * scale
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
