"""Convert vLLM's startup failures to errors of the contract."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sage_infer.errors import (
    BackendUnavailable,
    CapabilityMismatch,
    ModelFileError,
    OutOfMemory,
    SageInferError,
)
from sage_infer.errors import UnsupportedFeature as Unsupported

__all__ = ["start_failure"]

_MEMORY_TYPES = ("MemoryError", "OutOfMemoryError")
_MEMORY = re.compile(
    r"KV cache.*(memory|larger than|needed)|out of memory|memory.*KV cache|No available memory", re.I
)
_FILES = re.compile(
    r"safetensors|model weights|HeaderTooLarge|InvalidHeader|not found in|No such file|not initialized from checkpoint"
    r"|does not recognize this architecture|checkpoint", re.I
)  # fmt: skip
_FILE_TYPES = ("FileNotFoundError", "SafetensorError", "JSONDecodeError")
_QUANTIZATION = re.compile(r"quantization|kv.?cache.?dtype|cache dtype|KV cache on \w+ requires", re.I)
_PRELOAD = re.compile(r"(\S+) is not found in LD_PRELOAD")  # vLLM 0.18's CPU worker
# What vLLM raises if one of its processes ended: it does not say how.
_ENDED = re.compile(r"core initialization failed|EngineCore encountered an issue")
_ARCHITECTURE = re.compile(r"architectures?.*(not supported|are not supported|failed to be inspected)", re.I)


def start_failure(
    reported: Sequence[tuple[str, str]], raised: BaseException, *, ended: str = ""
) -> SageInferError:
    """The error for a failed start.

    Args:
        reported: failures of the engine's processes, in order.
        raised: vLLM's exception.
        ended: how a process of the engine ended, empty if all run; the cause if vLLM and the processes name none.
    """
    if ended and not reported and _ENDED.search(str(raised)):
        memory = "; the kernel does so when memory runs out" if "SIGKILL" in ended else ""
        return BackendUnavailable(
            f"vLLM did not start: {ended}{memory} (VLLM_LOGGING_LEVEL=INFO shows its log)"
        )
    kind, text = reported[0] if reported else (type(raised).__name__, str(raised))
    line = _one_line(text) or kind
    library = _PRELOAD.search(text)
    if library is not None:
        return BackendUnavailable(
            f"vLLM's CPU build requires {library[1]} in LD_PRELOAD, which is read when the program starts; "
            f"install the library and set LD_PRELOAD to its path"
        )
    if kind in _MEMORY_TYPES or _MEMORY.search(text):
        return OutOfMemory(
            f"vLLM has not enough memory: {line.rstrip('.')}; lower max_sequence_length, or raise kv_cache_gb"
        )
    if _ARCHITECTURE.search(text):
        return Unsupported(f"vLLM cannot run this model: {line}")
    if _QUANTIZATION.search(text):
        return CapabilityMismatch(f"not supported by vLLM on this platform: {line}")
    if kind in _FILE_TYPES or _FILES.search(text):
        return ModelFileError(f"vLLM cannot load the model: {line}")
    return BackendUnavailable(f"vLLM did not start: {kind}: {line} (VLLM_LOGGING_LEVEL=INFO shows its log)")


def _one_line(text: str) -> str:
    """The text on one line, without pydantic's heading and links."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith("For further information")]
    if len(kept) > 1 and "validation error" in kept[0]:
        kept = kept[1:]
    return re.sub(r"\s*\[type=.*?\]$", "", " ".join(kept))[:600]
