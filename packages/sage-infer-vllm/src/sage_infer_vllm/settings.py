"""Options of a backend, validated before loading, and their conversion to vLLM's engine arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen
from packaging.specifiers import SpecifierSet
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor
from sage_infer.sdk.fields import Choice, Entries, Flag, Integer, Number, Text, optional

from sage_infer_vllm.installed import plugin_versions
from sage_infer_vllm.kv.claims import EXCLUDED, connector_arguments
from sage_infer_vllm.platform import Platform

__all__ = ["CPU_KV_GB", "VLLMSettings", "engine_arguments", "engine_environment", "visible_devices"]

CPU_KV_GB = 2.0
"""Default KV cache on a CPU in GiB; vLLM's own default would use most of the machine's memory."""

_CPU_KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"

_OURS = {
    "model": "the model that the backend is opened with",
    "max_model_len": "max_sequence_length",
    "max_num_seqs": "max_batch_size",
    "kv_cache_memory_bytes": "kv_cache_gb",
    "gpu_memory_utilization": "memory_fraction",
    "tensor_parallel_size": "tensor_parallel",
    "enable_prefix_caching": "prefix_caching",
    "kv_cache_dtype": "kv_schema",
    "block_size": "kv_schema",
    "enable_lora": "adapters",
}
"""Engine arguments set by our options, with the option's name."""

_STORED_PAGE = 32
"""Tokens of a page below a KV store, unless ``kv_schema`` sets another number. With vLLM's 128 on a CPU, up to 127
tokens of a stored prompt would be computed."""


@frozen(kw_only=True)
class VLLMSettings:
    """Settings of an engine; invalid values are rejected before loading."""

    dtype: str = field(default="auto", validator=Choice(("auto", "bfloat16", "float16", "float32")))
    max_batch_size: int | None = field(default=None, validator=optional(Integer(ge=1)))
    max_sequence_length: int | None = field(default=None, validator=optional(Integer(ge=2)))
    max_queue: int = field(default=1024, validator=Integer(ge=1))
    hold_s: float = field(default=600.0, validator=Number(gt=0))
    kv_cache_gb: float | None = field(default=None, validator=optional(Number(gt=0)))
    memory_fraction: float | None = field(default=None, validator=optional(Number(gt=0, le=1)))
    tensor_parallel: int = field(default=1, validator=Integer(ge=1))
    prefix_caching: bool | None = field(default=None, validator=optional(Flag()))
    kv_store: str | Mapping[str, Any] | None = field(default=None)
    kv_store_wait_s: float = field(default=1.0, validator=Number(gt=0))
    cuda_kv: bool = field(default=False, validator=Flag())
    eager: bool = field(default=False, validator=Flag())
    quantization: str | None = field(default=None, validator=optional(Text(min_length=1)))
    adapters: Mapping[str, str] = field(factory=dict, validator=Entries(Text(min_length=1)))
    max_adapter_rank: int = field(default=16, validator=Integer(ge=1))
    engine_options: Mapping[str, Any] = field(factory=dict)
    threads: int | None = field(default=None, validator=optional(Integer(ge=1)))
    tool_parser: str | None = field(default=None, validator=optional(Text(min_length=1)))
    cache_dir: str | None = field(default=None, validator=optional(Text(min_length=1)))

    def __attrs_post_init__(self) -> None:
        for name in self.engine_options:
            if name in _OURS:
                raise InvalidRequest(f"engine_options cannot set {name!r}; use {_OURS[name]}")
        if self.kv_store is not None and not isinstance(self.kv_store, str | Mapping):
            raise InvalidRequest(
                "kv_store must be the name of a KV store, or {store: NAME, …} with its options; got "
                f"{self.kv_store!r}"
            )


def engine_arguments(
    settings: VLLMSettings,
    platform: Platform,
    model: ModelDescriptor,
    path: str,
    *,
    device: str,
    runner: Literal["generate", "pooling"],
    connector_gap: str = "",
) -> dict[str, Any]:
    """Arguments for vLLM's ``AsyncEngineArgs``; unset options are left to vLLM.

    ``device`` is vLLM's device type, ``path`` the model's folder, ``connector_gap`` what the installed vLLM lacks for
    our connector (``compat.connector_gap``).

    Raises:
        UnsupportedFeature: ``kv_store`` is not supported with this vLLM, device or arguments.
    """
    limits = [n for n in (settings.max_sequence_length, model.max_sequence_length) if n is not None]
    batches = [n for n in (settings.max_batch_size, model.max_batch_size) if n is not None]
    fraction = settings.memory_fraction or platform.memory_fraction
    kv_gb = settings.kv_cache_gb
    if kv_gb is not None:
        _check_kv_size(platform)
    elif device == "cpu" and _CPU_KV_VARIABLE not in os.environ:
        kv_gb = CPU_KV_GB
    wanted: dict[str, Any] = {
        "dtype": settings.dtype,
        "runner": runner,
        "max_model_len": min(limits, default=None),
        "max_num_seqs": min(batches, default=None),
        "kv_cache_memory_bytes": None if kv_gb is None else int(kv_gb * 2**30),
        "gpu_memory_utilization": fraction,
        "quantization": settings.quantization,
    }
    arguments = {
        **platform.engine_options,
        "model": path,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.eager,
        "enable_prefix_caching": runner == "generate"
        and (platform.prefix_caching if settings.prefix_caching is None else settings.prefix_caching),
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        # As in the embedded engine: the same dialects, and JSON without free white space, which models may repeat
        # endlessly.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        **{name: value for name, value in wanted.items() if value is not None},
    }
    if settings.adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": len(settings.adapters),
            "max_lora_rank": settings.max_adapter_rank,
        }
    arguments |= settings.engine_options
    _check_connector(arguments.get("kv_transfer_config"), platform)
    hardware = platform.hardware_backend or device
    is_left_out = bool(connector_gap) or (hardware == "cuda" and not settings.cuda_kv)
    connector = {} if is_left_out else connector_arguments(arguments, device=hardware, runner=runner)
    if settings.kv_store is not None:
        if connector_gap:
            raise UnsupportedFeature(f"kv_store is not supported: {connector_gap}")
        if is_left_out:
            raise UnsupportedFeature(
                "kv_store on a CUDA device needs the option cuda_kv=true: this path was written from vLLM's sources "
                "and has not run on a card yet"
            )
        if not connector:
            raise UnsupportedFeature(
                "kv_store is supported on one CPU or CUDA device only, and not with the engine arguments "
                + ", ".join(EXCLUDED)
            )
        arguments["block_size"] = _STORED_PAGE
    return {**arguments, **connector}


def _check_kv_size(platform: Platform) -> None:
    if platform.kv_bytes_since is None:
        return
    for name, version in plugin_versions(platform).items():
        if not SpecifierSet(platform.kv_bytes_since).contains(version, prereleases=True):
            raise UnsupportedFeature(
                f"kv_cache_gb has no effect in {name} {version}; use memory_fraction, or "
                f"{name}{platform.kv_bytes_since}"
            )


def _check_connector(transfer: Any, platform: Platform) -> None:
    """Reject KV connectors of vLLM that the vendor's build does not accept; connectors from other modules pass."""
    if (
        not platform.kv_connectors
        or not isinstance(transfer, Mapping)
        or "kv_connector_module_path" in transfer
    ):
        return
    name = transfer.get("kv_connector")
    if name not in platform.kv_connectors:
        raise UnsupportedFeature(
            f"{platform.backend_name} does not support the KV connector {name!r}; supported: "
            + ", ".join(platform.kv_connectors)
        )


def engine_environment(
    settings: VLLMSettings, platform: Platform, model: ModelDescriptor, device: str
) -> dict[str, str | None]:
    """Environment variables of an engine; None unsets a variable.

    On a CPU, vLLM's variable for the size of the KV cache would override the option ``kv_cache_gb``. With ``threads``,
    its threads are not bound to cores, which would be the same ones for each engine of the machine.

    Raises:
        InvalidRequest: see ``visible_devices``.
    """
    found: dict[str, str | None] = dict(visible_devices(platform, model, device))
    if device == "cpu" and settings.kv_cache_gb is not None:
        found[_CPU_KV_VARIABLE] = None
    if device == "cpu" and settings.threads is not None:
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(settings.threads)}
    return found


def visible_devices(platform: Platform, model: ModelDescriptor, device: str) -> dict[str, str]:
    """Environment that limits the engine to the devices of the model's descriptor; empty without devices.

    Raises:
        InvalidRequest: the descriptor has devices, but the platform cannot select devices.
    """
    if not model.device_ids or device == "cpu":
        return {}
    if platform.visible_devices is None:
        raise InvalidRequest(
            f"device_ids {list(model.device_ids)} cannot be selected on {platform.backend_name}; remove them"
        )
    return {platform.visible_devices: ",".join(map(str, model.device_ids))}
