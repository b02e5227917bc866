"""Load a model's files into a runnable model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import frozen
from platformdirs import user_cache_dir
from sage_infer.contracts import ProgressReport
from sage_infer.schemas import DecodeState, ModelDescriptor, RequestOptions, SamplingParams
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.setting import open_kv_store
from sage_infer.sdk.prepared import Progress

from sage_infer_openvino.engine.decode_state import StateKeeper
from sage_infer_openvino.engine.engine import DecoderEngine
from sage_infer_openvino.engine.grammar.compiler import GrammarCompiler, GrammarMatcher
from sage_infer_openvino.engine.kv_events import KVEventLog
from sage_infer_openvino.engine.kv_reuse import KVReuse
from sage_infer_openvino.engine.kv_schema import kv_schema_of
from sage_infer_openvino.engine.page_store import PageStore
from sage_infer_openvino.engine.paged_runner import PagedRunner
from sage_infer_openvino.engine.requests import RequestFactory
from sage_infer_openvino.engine.resuming import replay
from sage_infer_openvino.engine.sampler import Sampler
from sage_infer_openvino.engine.sequence import EngineRequest
from sage_infer_openvino.kv_format import cast_floats
from sage_infer_openvino.models.prepare import prepare_decoder
from sage_infer_openvino.models.text_codec import DecoderTexts
from sage_infer_openvino.models.tokenizer import TextTokenizer
from sage_infer_openvino.settings import DecoderSettings

__all__ = ["LoadedDecoder", "assemble", "default_cache_dir", "load_model", "no_progress", "prepare"]


_SHARE_IN_FLIGHT = 4  # of the KV cache's size may be on its way from a KV store, and as much to it


def default_cache_dir() -> Path:
    """Default folder of prepared models."""
    return Path(user_cache_dir("sage-infer")) / "openvino"


@frozen(kw_only=True)
class LoadedDecoder:
    """A model ready to run. ``max_sequence_length`` is the limit by model, options and KV cache, in tokens."""

    runner: PagedRunner
    tokenizer: TextTokenizer
    texts: DecoderTexts
    requests: RequestFactory
    states: StateKeeper
    grammars: GrammarCompiler
    max_sequence_length: int

    async def compile_grammar(
        self, params: SamplingParams, options: RequestOptions | None = None
    ) -> GrammarMatcher | None:
        """Compile ``params.guided`` for this model, which may be slow for large schemas."""
        if params.guided is None:
            return None
        return await self.grammars.compiled(params.guided, "" if options is None else options.tenant)

    async def resumed(
        self, states: Sequence[DecodeState], request_id: str, options: RequestOptions | None
    ) -> EngineRequest:
        """Restore the request of these states (``checked_states``) with the outputs that they contain.

        Raises:
            CapabilityMismatch, InvalidRequest, UnsupportedFeature: see ``Resuming.resume``.
        """
        for state in states:
            self.states.check_model(state)
        grammar = await self.compile_grammar(states[0].params, options)
        request = self.requests.from_states(states, request_id, options=options, grammar=grammar)
        # In a thread, because outputs of many thousand tokens take tenths of a second.
        await asyncio.to_thread(replay, request, states, self.states.eos_token_ids)
        return request

    def open_reuse(self, settings: DecoderSettings) -> KVReuse | None:
        """The configured KV store, for pages of this model; None where there is none.

        Raises:
            BackendUnavailable, ConfigError, OutOfMemory: as ``open_store`` and the store say.
        """
        if settings.kv_store is None:
            return None
        states = self.states
        store = open_kv_store(
            settings.kv_store, schema=states.schema, model_id=states.kv_model, weights_id=states.weights_id
        )
        broker = KVBroker(
            store,
            page_bytes=self.runner.block_nbytes,
            wait_s=settings.kv_store_wait_s,
            buffer_bytes=self.runner.num_blocks * self.runner.block_nbytes // _SHARE_IN_FLIGHT,
        )
        return KVReuse(broker, self.runner, states.key_chain)

    def start_engine(
        self, settings: DecoderSettings, generation: int, pages: PageStore | None = None
    ) -> DecoderEngine:
        """Start the engine thread; ``generation`` identifies the instance's KV events."""
        return DecoderEngine(
            self.runner,
            Sampler(self.tokenizer),
            self.tokenizer.eos_token_ids,
            max_batch_size=settings.max_batch_size,
            step_tokens=settings.step_tokens,
            decode_slowdown=settings.decode_slowdown,
            max_queue=settings.max_queue,
            key_chain=self.states.key_chain if settings.prefix_caching else None,
            events=KVEventLog(generation) if settings.prefix_caching else None,
            pages=pages,
        )


def no_progress(stage: str, share: float | None) -> None:
    """A ``ProgressReport`` that does nothing."""


def load_model(
    model: ModelDescriptor,
    settings: DecoderSettings,
    *,
    instance_id: str,
    report: ProgressReport = no_progress,
) -> LoadedDecoder:
    """Prepare the model if needed, compile it, and allocate its KV cache.

    Raises:
        ModelNotFound, ModelFileError, UnsupportedFeature: the model cannot be used.
        InvalidRequest: ``kv_cache_gb`` is too small for a single block.
    """
    cache_dir = Path(settings.cache_dir) if settings.cache_dir else default_cache_dir()
    prepared = prepare_decoder(
        model.model_path,
        cache_dir=cache_dir,
        weight_format=settings.weight_format,
        progress=lambda stage, share: None if stage == "ready" else report(stage, share),
    )
    report("compiling", None)
    with ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(prepared.load_tokenizer)  # on one core, while OpenVINO compiles
        runner = PagedRunner(
            prepared.xml,
            kv_cache_bytes=int(settings.kv_cache_gb * 2**30),
            device=settings.device,
            precision=settings.precision,
            kv_precision=settings.kv_precision,
            dynamic_quantization=settings.dynamic_quantization,
            threads=settings.threads,
        )
        report("warming up", None)
        limits = [prepared.config.max_sequence_length, runner.num_blocks * runner.block_size]
        limits += [n for n in (settings.max_sequence_length, model.max_sequence_length) if n is not None]
        loaded = assemble(
            runner,
            tokenizer.result(),
            model_id=model.model_id,
            fingerprint=computed_form(prepared.fingerprint, settings),
            weights_id=prepared.weights_id,
            instance_id=instance_id,
            max_sequence_length=min(limits),
        )
        # During the load, when no request waits for the event loop and OpenVINO computes.
        converting = pool.submit(loaded.grammars.load)
        runner.warm_up()
        converting.exception()  # the first constraint raises it again
    return loaded


def computed_form(fingerprint: str, settings: DecoderSettings) -> str:
    """The fingerprint of weights together with what else changes their KV: KV is shared where all of it is equal."""
    own = {
        "precision": settings.precision if settings.precision != "f32" else "",
        "dynamic_quantization": "yes" if settings.dynamic_quantization else "",
        "device": settings.device if settings.device.upper() != "CPU" else "",
    }
    return fingerprint + "".join(f"/{name}={value}" for name, value in own.items() if value)


def assemble(
    runner: PagedRunner,
    tokenizer: TextTokenizer,
    *,
    model_id: str,
    fingerprint: str,
    weights_id: str,
    instance_id: str,
    max_sequence_length: int,
) -> LoadedDecoder:
    """Combine a runner and a tokenizer to a loaded model."""
    texts = DecoderTexts(tokenizer, runner.vocab_size)
    return LoadedDecoder(
        runner=runner,
        tokenizer=tokenizer,
        texts=texts,
        requests=RequestFactory(texts, max_sequence_length=max_sequence_length),
        states=StateKeeper(
            backend="openvino",
            model_id=model_id,
            kv_model=fingerprint,
            weights_id=weights_id,
            instance_id=instance_id,
            schema=kv_schema_of(runner.kv_layout, runner.num_layers, runner.block_nbytes),
            cast=cast_floats,
            eos_token_ids=frozenset(tokenizer.eos_token_ids),
        ),
        grammars=GrammarCompiler(tokenizer, runner.vocab_size),
        max_sequence_length=max_sequence_length,
    )


def prepare(model: ModelDescriptor, progress: Progress) -> None:
    """Prepare a model ahead of time for ``load_model`` (``BackendSpec.prepare``)."""
    prepare_decoder(model.model_path, cache_dir=default_cache_dir(), progress=progress)
