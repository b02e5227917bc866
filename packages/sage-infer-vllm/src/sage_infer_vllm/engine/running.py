"""An engine with its model loaded, and what the backends read from it."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define
from sage_infer.contracts import ChatAnswer, EngineStats
from sage_infer.errors import (
    BackendUnavailable,
    CapabilityMismatch,
    EngineDead,
    ModelNotFound,
    UnsupportedFeature,
)
from sage_infer.models.prepared import Progress
from sage_infer.schemas import CapabilityDescriptor, ModelDescriptor

from sage_infer_vllm.engine.capability import Service, capability_of
from sage_infer_vllm.models.kv_schema import cache_arguments, kv_schema_of
from sage_infer_vllm.models.prepare import loadable_folder
from sage_infer_vllm.models.quantization import Quantization
from sage_infer_vllm.requests.open_requests import OpenRequests
from sage_infer_vllm.settings import VLLMSettings, engine_arguments, visible_devices

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["Running", "adapter_folder", "import_compat", "open_model"]

_CONVERTED = 0.3  # share of the whole that converting a GGUF file gets


@define(eq=False)
class Running:
    """A loaded model.

    Attributes:
        engine: the engine that runs it.
        compat: the module that imported vLLM.
        capability: what it can do.
        tokenizer: the model's, None where it has none.
        requests: the requests that are open.
        adapters: LoRA adapters by name, as vLLM takes them.
        parse_tools: takes an answer's text and the tools apart; None where no parser was chosen.
    """

    engine: VLLMEngine
    compat: Any
    capability: CapabilityDescriptor
    tokenizer: Any
    requests: OpenRequests
    adapters: Mapping[str, Any]
    parse_tools: Callable[[str, Sequence[Mapping[str, Any]] | None], ChatAnswer] | None

    @property
    def max_sequence_length(self) -> int:
        return self.capability.max_sequence_length

    @property
    def vocab_size(self) -> int:
        return int(self.engine.config.model_config.get_vocab_size())

    @property
    def max_logprobs(self) -> int:
        limit = int(self.engine.config.model_config.max_logprobs)
        return self.vocab_size if limit < 0 else limit

    @property
    def stopped(self) -> str:
        if not self.engine.stopped and self.engine.llm.errored:
            return "vLLM's engine reports an error that it does not recover from"
        return self.engine.stopped

    def dead(self) -> EngineDead:
        return EngineDead(f"the engine has stopped: {self.stopped or 'it ended'}; open the backend again")

    def adapter(self, name: str | None) -> Any:
        """vLLM's request for an adapter; None for none.

        Raises:
            UnsupportedFeature: the engine was opened without adapters.
            ModelNotFound: it has none of this name.
        """
        if name is None:
            return None
        if not self.adapters:
            raise UnsupportedFeature(
                f"adapter {name!r}: the engine was opened without adapters; set the option adapters={{NAME: FOLDER}}"
            )
        if name not in self.adapters:
            raise ModelNotFound(f"no adapter {name!r}; there are {', '.join(sorted(self.adapters))}")
        return self.adapters[name]

    def stats(self) -> EngineStats:
        counters, open_requests = self.engine.counters, len(self.requests)
        # vLLM says nothing after the last request was cancelled; then there is nothing that runs or holds blocks.
        usage = counters.kv_usage if open_requests else 0.0
        running = counters.running if open_requests else 0
        waiting = max(counters.waiting, open_requests - running) if open_requests else 0
        total = max(
            (self.engine.config.cache_config.num_gpu_blocks or 0) - 1, 0
        )  # vLLM keeps one for padding
        if self.capability.kv_schema is None:
            total = 0
        prompt_rate, output_rate = counters.rates()
        queries = counters.cache_queries
        return EngineStats(
            running=running,
            waiting=waiting,
            kv_blocks_total=total,
            kv_blocks_free=total - round(usage * total),
            finished=self.requests.finished,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.output_tokens,
            prefix_hit_tokens=counters.cache_hits,
            extensions={
                "kv_usage": usage,
                "prefix_hit_rate": counters.cache_hits / queries if queries else 0.0,
                "prompt_tokens_per_s": prompt_rate,
                "output_tokens_per_s": output_rate,
                "preemptions": counters.preemptions,
            },
        )

    async def drained(self) -> None:
        """Wait until no request is open."""
        while len(self.requests):
            await self.requests.one_ended()

    async def close(self) -> None:
        await self.requests.settled()
        await self.engine.close()


async def open_model(
    model: ModelDescriptor,
    service: Service,
    settings: VLLMSettings,
    *,
    kv_schema: Mapping[str, Any] | None,
    quantization: Quantization,
    on_progress: Progress,
) -> Running:
    """Convert the model where that is needed, start vLLM with it, and read what the engine is.

    Raises:
        BackendUnavailable, ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: it cannot be opened.
    """
    platform, converted = service.platform, 0.0

    def convert(stage: str, share: float) -> None:
        nonlocal converted
        converted = _CONVERTED
        on_progress(stage, _CONVERTED * share)

    def progress(stage: str, share: float) -> None:
        on_progress(stage, converted + (1 - converted) * share)

    adapters = {name: adapter_folder(name, path) for name, path in settings.adapters.items()}
    folder = await asyncio.to_thread(
        loadable_folder, model.model_path, cache_dir=settings.cache_dir, progress=convert
    )
    progress("importing vLLM", 0.0)
    compat = await asyncio.to_thread(import_compat)
    from sage_infer_vllm.engine.engine import start_engine  # it has vLLM at its top

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
        found = engine_arguments(settings, platform, model, str(folder), device=device, runner=service.runner)
        if quantization.method is not None:
            found["quantization"] = quantization.method
        return {**found, **cache_arguments(wanted_kv, platform, supported)}

    engine = await start_engine(
        arguments,
        platform,
        lambda device: visible_devices(platform, model, device),
        progress,
        warm_up=service.runner == "generate",
    )
    try:
        return _read(service, engine, compat, settings, wanted_kv, quantization, adapters)
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
) -> Running:
    cache = engine.config.cache_config
    schema = None
    if service.runner == "generate":
        schema = kv_schema_of(engine.kv, cache_dtype=str(cache.cache_dtype), version=compat.version())
    _check_kv(wanted_kv, schema)
    tokenizer = engine.llm.get_tokenizer()
    capability = capability_of(
        service, engine, compat, tokenizer, schema, settings=settings, quantization=quantization
    )
    requests = OpenRequests(settings.max_queue, lambda collector: compat.abort_now(engine.llm, collector))
    lora = {
        name: compat.LoRARequest(name, number, str(path))
        for number, (name, path) in enumerate(adapters.items(), 1)
    }
    parse_tools = (
        None if settings.tool_parser is None else compat.tool_parser(settings.tool_parser, tokenizer)
    )
    running = Running(engine, compat, capability, tokenizer, requests, lora, parse_tools)

    def died() -> None:
        requests.fail_all(
            lambda request_id: EngineDead(
                f"{engine.stopped} while request {request_id} ran; open the backend again"
            )
        )

    engine.watch(died)
    return running


def _check_kv(wanted: Mapping[str, Any], schema: Any) -> None:
    """The engine has the KV cache that was asked for, and not one that vLLM chose instead."""
    if schema is None or not wanted:
        return
    preset, page_size = wanted.get("preset"), wanted.get("page_size")
    if preset in ("fp16", "bf16") and schema.dtype != preset:
        raise CapabilityMismatch(
            f"KV was asked for in {preset}, and vLLM keeps it in the model's {schema.dtype} here; "
            f"set the option dtype to {'float16' if preset == 'fp16' else 'bfloat16'}, or leave the preset out"
        )
    if page_size is not None and schema.page_size != page_size:
        raise CapabilityMismatch(
            f"KV pages of {page_size} tokens were asked for, and vLLM made {schema.page_size}; leave page_size out"
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
    """
    folder = Path(path).expanduser().resolve()
    if not (folder / "adapter_config.json").is_file():
        raise ModelNotFound(f"adapter {name!r}: {folder} has no adapter_config.json; expected a PEFT folder")
    return folder
