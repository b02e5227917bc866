"""From a model's files to everything that the engine runs on."""

from __future__ import annotations

import asyncio
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

from attrs import field, frozen
from platformdirs import user_cache_dir
from sage_infer.checks import Choice, Flag, Integer, Number, Text, optional
from sage_infer.models.prepared import Progress
from sage_infer.schemas import ModelDescriptor, SamplingParams

from sage_infer_openvino.decode_state import StateKeeper
from sage_infer_openvino.engine import Engine
from sage_infer_openvino.guide import Guide, GuideFactory
from sage_infer_openvino.kv_schema import kv_schema_of
from sage_infer_openvino.paged_runner import PagedRunner
from sage_infer_openvino.prepare import prepare_decoder
from sage_infer_openvino.requests import RequestFactory
from sage_infer_openvino.sampler import Sampler
from sage_infer_openvino.tokenizer import TextTokenizer
from sage_infer_openvino.weight_format import WeightFormat

__all__ = ["LoadedModel", "Settings", "assemble", "default_cache_dir", "hardware_of", "load_model", "prepare"]


DEVICE = Text(pattern="[A-Za-z].*", hint="an OpenVINO device such as CPU, GPU.0 or NPU")


def default_cache_dir() -> Path:
    """Where prepared models are kept unless the caller says otherwise."""
    return Path(user_cache_dir("sage-infer")) / "openvino"


@frozen(kw_only=True)
class Settings:
    """How to run a model; wrong values are refused before anything is loaded."""

    weight_format: WeightFormat = field(validator=Choice(get_args(WeightFormat)))
    precision: str = field(validator=Choice(("f32", "bf16", "f16")))
    kv_precision: str | None = field(validator=optional(Choice(("f32", "bf16", "f16", "u8"))))
    dynamic_quantization: bool = field(validator=Flag())
    kv_cache_gb: float = field(validator=Number(gt=0))
    max_batch_size: int = field(validator=Integer(ge=1))
    max_sequence_length: int | None = field(validator=optional(Integer(ge=2)))
    max_queue: int = field(validator=Integer(ge=1))
    prefix_caching: bool = field(validator=Flag())
    step_tokens: int = field(validator=Integer(ge=16))
    decode_slowdown: float = field(validator=Number(gt=1))
    device: str = field(validator=DEVICE)
    threads: int | None = field(validator=optional(Integer(ge=1)))
    cache_dir: str | None = field(validator=optional(Text(min_length=1)))


@frozen(kw_only=True)
class LoadedModel:
    """A model ready to run. ``max_sequence_length`` is what model, options and KV cache allow, in tokens."""

    runner: PagedRunner
    tokenizer: TextTokenizer
    requests: RequestFactory
    states: StateKeeper
    guides: GuideFactory
    max_sequence_length: int

    async def guide(self, params: SamplingParams) -> Guide | None:
        """What ``params.guided`` means for this model. Compiled in a thread: a large schema takes its time."""
        return None if params.guided is None else await asyncio.to_thread(self.guides.compile, params.guided)

    def start_engine(self, settings: Settings) -> Engine:
        return Engine(
            self.runner,
            Sampler(self.tokenizer),
            self.tokenizer.eos_token_ids,
            max_batch_size=settings.max_batch_size,
            step_tokens=settings.step_tokens,
            decode_slowdown=settings.decode_slowdown,
            max_queue=settings.max_queue,
            block_keys=self.states.block_keys if settings.prefix_caching else None,
        )


def load_model(model: ModelDescriptor, settings: Settings) -> LoadedModel:
    """Prepare the model if that has not been done, compile it, and allocate its KV cache.

    Raises:
        ModelNotFound, ModelFileError, UnsupportedFeature: the model cannot be used.
        InvalidRequest: ``kv_cache_gb`` is too small for a single block.
    """
    cache_dir = Path(settings.cache_dir) if settings.cache_dir else default_cache_dir()
    prepared = prepare_decoder(
        model.model_path,
        cache_dir=cache_dir,
        weight_format=settings.weight_format,
    )
    with ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(prepared.load_tokenizer)  # one core's work, while OpenVINO compiles
        runner = PagedRunner(
            prepared.xml,
            kv_cache_bytes=int(settings.kv_cache_gb * 2**30),
            device=settings.device,
            precision=settings.precision,
            kv_precision=settings.kv_precision,
            dynamic_quantization=settings.dynamic_quantization,
            threads=settings.threads,
        )
        runner.warm_up()
    limits = [prepared.config.max_sequence_length, runner.num_blocks * runner.block_size]
    limits += [n for n in (settings.max_sequence_length, model.max_sequence_length) if n is not None]
    return assemble(
        runner,
        tokenizer.result(),
        model_id=model.model_id,
        fingerprint=prepared.fingerprint,
        max_sequence_length=min(limits),
    )


def assemble(
    runner: PagedRunner,
    tokenizer: TextTokenizer,
    *,
    model_id: str,
    fingerprint: str,
    max_sequence_length: int,
) -> LoadedModel:
    """What the engine runs on, of a runner and a tokenizer."""
    return LoadedModel(
        runner=runner,
        tokenizer=tokenizer,
        requests=RequestFactory(
            model_id, tokenizer, vocab_size=runner.vocab_size, max_sequence_length=max_sequence_length
        ),
        states=StateKeeper(
            model_id=model_id,
            fingerprint=fingerprint,
            instance_id=f"openvino-{uuid.uuid4().hex[:12]}",
            schema=kv_schema_of(runner.kv_layout, runner.num_layers, runner.block_nbytes),
            eos_token_ids=frozenset(tokenizer.eos_token_ids),
        ),
        guides=GuideFactory(tokenizer, runner.vocab_size),
        max_sequence_length=max_sequence_length,
    )


def hardware_of(device: str) -> str:
    """OpenVINO's device (``CPU``, ``GPU.1``, ``AUTO:GPU,CPU``) as the contract's ``hardware_backend``."""
    name = re.split(r"[.:(]", device.lower(), maxsplit=1)[0]
    return {"gpu": "intel-gpu", "npu": "intel-npu"}.get(name, re.sub("[^a-z0-9_-]", "-", name))


def prepare(model: ModelDescriptor, progress: Progress) -> None:
    """Make the form that ``load_model`` reads, ahead of time (``BackendSpec.prepare``)."""
    prepare_decoder(model.model_path, cache_dir=default_cache_dir(), progress=progress)
