"""Opens a model on vLLM: converts its files if needed, starts the engine, and reads its capabilities."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from sage_infer.contracts import ProgressReport
from sage_infer.errors import (
    BackendUnavailable,
    CapabilityMismatch,
    EngineDead,
    ModelNotFound,
    UnsupportedFeature,
)
from sage_infer.models import check_model_files
from sage_infer.schemas import ModelDescriptor
from sage_infer.sdk.kv_pages.setting import check_kv_store

from sage_infer_vllm.engine.capability import Service, capability_of
from sage_infer_vllm.engine.kv_reuse import KVReuse
from sage_infer_vllm.engine.running import Running
from sage_infer_vllm.handover.kv_format import cast_floats
from sage_infer_vllm.handover.states import States
from sage_infer_vllm.installed import plugin_versions
from sage_infer_vllm.kv.claims import handover_features
from sage_infer_vllm.kv.plan import FIRST_TOKEN_CLASS
from sage_infer_vllm.kv.traffic import open_traffic
from sage_infer_vllm.models.kv_options import cache_arguments
from sage_infer_vllm.models.kv_schema import KV_DTYPES, describe_kv
from sage_infer_vllm.models.prepare import loadable_folder
from sage_infer_vllm.models.quantization import Quantization, undetected_method
from sage_infer_vllm.models.weights import WeightIds, adapter_id, weight_ids
from sage_infer_vllm.platform import Platform
from sage_infer_vllm.requests.chat import chat_renderer
from sage_infer_vllm.requests.open_requests import OpenRequests
from sage_infer_vllm.settings import VLLMSettings, engine_arguments, engine_environment

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["adapter_folder", "import_compat", "open_model"]

_SHARE_CACHED = 2  # of the KV cache's pages are assumed to be in it: those that were used last
_CONVERTED = 0.3  # share of the progress for converting a GGUF file


async def open_model(
    model: ModelDescriptor,
    service: Service,
    settings: VLLMSettings,
    *,
    kv_schema: Mapping[str, Any] | None,
    quantization: Quantization,
    on_progress: ProgressReport,
    instance_id: str,
) -> Running:
    """Convert the model if needed, start vLLM with it, and read the engine's facts.

    Raises:
        BackendUnavailable, ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: the model cannot be
            opened.
    """
    platform, converted = service.platform, 0.0

    def convert(stage: str, share: float) -> None:
        nonlocal converted
        converted = _CONVERTED
        on_progress(stage, _CONVERTED * share)

    def progress(stage: str, share: float | None) -> None:
        on_progress(stage, None if share is None else converted + (1 - converted) * share)

    adapters = {name: adapter_folder(name, path) for name, path in settings.adapters.items()}
    if settings.kv_store is not None:
        check_kv_store(settings.kv_store)
    folder = await asyncio.to_thread(
        loadable_folder, model.model_path, cache_dir=settings.cache_dir, progress=convert
    )
    progress("importing vLLM", 0.0)
    compat = await asyncio.to_thread(import_compat)
    from sage_infer_vllm.engine.engine import start_engine  # imports vLLM

    if quantization.max_sequence_length is not None:
        limits = [
            n for n in (settings.max_sequence_length, quantization.max_sequence_length) if n is not None
        ]
        settings = attrs.evolve(settings, max_sequence_length=min(limits))
    wanted_kv = dict(kv_schema or {})
    if quantization.kv_preset is not None:
        wanted_kv["preset"] = quantization.kv_preset

    def arguments(device: str) -> dict[str, Any]:
        supported = compat.cache_dtypes(device)
        found = engine_arguments(
            settings,
            platform,
            model,
            str(folder),
            device=device,
            runner=service.runner,
            connector_gap=compat.connector_gap(),
        )
        if quantization.method is not None:
            found["quantization"] = quantization.method
        elif (undetected := undetected_method(folder, platform)) is not None:
            found.setdefault("quantization", undetected)
        return {**found, **cache_arguments(wanted_kv, platform, supported)}

    # Concurrent with the start: vLLM reads the same files, and both wait for the disk.
    hashing = asyncio.ensure_future(asyncio.to_thread(weight_ids, folder))
    hashing.add_done_callback(
        lambda done: done.cancelled() or done.exception()
    )  # retrieved even if the start fails
    engine = await start_engine(
        arguments,
        platform,
        lambda device: engine_environment(settings, platform, model, device),
        progress,
        warm_up=service.runner == "generate",
    )
    try:
        tokenizer = await compat.tokenizer_of(engine.llm)
        running = _read(service, engine, compat, settings, wanted_kv, quantization, adapters, tokenizer)
        _name_kv(running, await hashing, model.model_id, instance_id)
        if settings.kv_store is not None:
            await _open_reuse(running, settings.kv_store, settings.kv_store_wait_s, adapters)
        return running
    except BaseException:
        await engine.close()
        raise


def _read(
    service: Service,
    engine: VLLMEngine,
    compat: Any,
    settings: VLLMSettings,
    wanted_kv: Mapping[str, Any],
    quantization: Quantization,
    adapters: Mapping[str, Path],
    tokenizer: Any,
) -> Running:
    config = engine.config
    schema, undescribed = None, ""
    if service.runner == "generate":
        schema, undescribed = describe_kv(
            engine.kv,
            cache_dtype=str(config.cache_config.cache_dtype),
            version=_stack(service.platform, compat.version()),
            ranks=config.parallel_config.tensor_parallel_size,
            total_heads=compat.total_kv_heads(engine.llm),
        )
    _check_kv(wanted_kv, engine.kv)
    chats = chat_renderer(tokenizer) if service.runner == "generate" else None
    # Our connector may be there by vLLM's own configuration, without what decode needs.
    is_ours = FIRST_TOKEN_CLASS in (config.model_config.logits_processors or ())
    handover, unsplit = handover_features(schema, engine.kv, engine.page_bytes if is_ours else 0)
    unsplit = compat.connector_gap() or unsplit
    capability = capability_of(
        service,
        engine,
        compat,
        schema,
        has_chats=chats is not None,
        settings=settings,
        quantization=quantization,
        handover=handover,
    )
    requests = OpenRequests(settings.max_queue, lambda collector: compat.abort_now(engine.llm, collector))
    lora = {
        name: compat.LoRARequest(name, number, str(path))
        for number, (name, path) in enumerate(adapters.items(), 1)
    }
    parse_tools = (
        None if settings.tool_parser is None else compat.tool_parser(settings.tool_parser, tokenizer)
    )
    running = Running(
        engine, compat, capability, tokenizer, chats, requests, lora, parse_tools, undescribed, unsplit
    )

    def died() -> None:
        requests.fail_all(
            lambda request_id: EngineDead(
                f"{engine.stopped} while request {request_id} ran; open the backend again"
            )
        )

    engine.watch(died)
    return running


def _stack(platform: Platform, version: str) -> str:
    """vLLM's version with the vendor's name and plug-in: layouts of equal names differ between vendors."""
    if platform.hardware_backend is None:
        return version
    return "-".join([version, platform.hardware_backend, *plugin_versions(platform).values()])


def _name_kv(running: Running, weights: WeightIds, model_id: str, instance_id: str) -> None:
    """Identity of the key space, equal only for instances with equal KV: weights, computation and KV format."""
    schema, model = running.capability.kv_schema, running.engine.config.model_config
    if schema is None:
        return
    running.states = States(
        backend="vllm",
        model_id=model_id,
        kv_model=f"{weights.content} {model.dtype} {model.quantization}",
        weights_id=weights.weights_id,
        instance_id=instance_id,
        schema=schema,
        cast=cast_floats,
    )
    running.key_space = running.states.key_space


async def _open_reuse(
    running: Running, setting: str | Mapping[str, Any], wait_s: float, adapters: Mapping[str, Path]
) -> None:
    """Open the KV store below a running engine."""
    states, engine = running.states, running.engine
    if states is None or not running.capability.supports("prefill_decode"):
        raise UnsupportedFeature(f"kv_store is not supported for this model: {running.unsplit}")
    config, blocks = engine.config, int(engine.config.cache_config.num_gpu_blocks or 0)
    traffic = await asyncio.to_thread(
        open_traffic,
        setting,
        kv_model=states.kv_model,
        weights_id=states.weights_id,
        schema=states.schema,
        blocks=blocks,
        sequence_tokens=running.max_sequence_length,
        step_tokens=int(config.scheduler_config.max_num_batched_tokens),
        wait_s=wait_s,
    )
    try:
        contents = {name: await asyncio.to_thread(adapter_id, path) for name, path in adapters.items()}
    except BaseException:
        traffic.close()
        raise
    running.reuse = KVReuse(
        traffic,
        kv_model=states.kv_model,
        schema=states.schema,
        adapters=contents,
        cached_pages=blocks // _SHARE_CACHED if config.cache_config.enable_prefix_caching else 0,
        fence=running.fence,
    )
    engine.counters.on_step = running.reuse.collect


def _check_kv(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check that the engine has the requested KV cache."""
    layers = [layer for layer in facts["layers"] if layer["num_heads"]]
    preset, page_size = wanted.get("preset"), wanted.get("page_size")
    dtypes = {KV_DTYPES.get(layer["dtype"], layer["dtype"]) for layer in layers}
    if preset in ("fp16", "bf16") and dtypes - {preset}:
        raise CapabilityMismatch(
            f"{preset} KV was requested, but vLLM uses the model's {', '.join(sorted(dtypes))}; "
            f"set the option dtype to {'float16' if preset == 'fp16' else 'bfloat16'}, or remove the preset"
        )
    sizes = {layer["block_size"] for layer in layers}
    if page_size is not None and sizes - {page_size}:
        raise CapabilityMismatch(
            f"KV pages of {page_size} tokens were requested, but vLLM uses "
            f"{', '.join(map(str, sorted(sizes)))}; remove page_size"
        )


def import_compat() -> Any:
    """The module that imports vLLM.

    Raises:
        BackendUnavailable: vLLM cannot be imported.
    """
    try:
        return importlib.import_module("sage_infer_vllm.compat")
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = ""
        if "torchvision" in what:
            hint = "; with a CPU build of torch: pip uninstall torchvision torchaudio torchcodec"
        raise BackendUnavailable(f"vLLM cannot be imported ({what}){hint}") from error


def adapter_folder(name: str, path: str) -> Path:
    """The folder of a LoRA adapter.

    Raises:
        ModelNotFound: there is no adapter in PEFT's format.
        ModelFileError: one of its files is not a regular file.
    """
    folder = Path(path).expanduser().resolve()
    check_model_files(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ModelNotFound(f"adapter {name!r}: {folder} has no adapter_config.json; expected a PEFT folder")
    return folder
