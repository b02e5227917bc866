"""vLLM's platform: the hardware that it found."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from vllm.config.cache import CacheDType
from vllm.platforms import current_platform

__all__ = ["active_platform_plugins", "cache_dtypes", "current_platform"]


def active_platform_plugins() -> list[str]:
    """Names of the platform plug-ins that provide vLLM's current platform class."""
    active = type(current_platform)
    qualified = f"{active.__module__}.{active.__qualname__}"
    return [
        entry.name
        for entry in entry_points(group="vllm.platform_plugins")
        if _platform_of(entry) == qualified
    ]


def _platform_of(entry: EntryPoint) -> Any:
    """What a plug-in returns: the qualified name of its platform, or None without its hardware.

    Also None if the plug-in cannot be loaded; vLLM ignores it then, too.
    """
    try:
        return entry.load()()
    except Exception:
        return None


def cache_dtypes(device: str) -> Sequence[str]:
    """All ``kv_cache_dtype`` values that attention supports on this device, as reported by vLLM before the start."""
    if device == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return tuple(CPUAttentionBackend.supported_kv_cache_dtypes)
    return get_args(CacheDType)
