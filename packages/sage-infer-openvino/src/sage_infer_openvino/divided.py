"""Calls that divide a request between engines: prefill and decode apart, resume, and KV that moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sage_infer.contracts import BufferedTokenStream, DecodeResult, PrefillResult, PromptLike, TokenStream
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import DecodeState, RequestOptions, SamplingParams
from sage_infer.sdk import checked_hold, kv_prompt

from sage_infer_openvino.engine.engine import DecoderEngine
from sage_infer_openvino.engine.prefilling import hold, prefill_result
from sage_infer_openvino.engine.requests import check_request_id
from sage_infer_openvino.engine.resuming import checked_states
from sage_infer_openvino.engine.sequence import EngineRequest
from sage_infer_openvino.loading import LoadedDecoder
from sage_infer_openvino.settings import DecoderSettings

__all__ = ["DividedRequests", "stream_of"]


class DividedRequests:
    """Part of ``OpenVINOBackend``, which provides the engine, the settings and the checks."""

    _settings: DecoderSettings

    def _ready(self) -> tuple[DecoderEngine, LoadedDecoder]:
        raise NotImplementedError

    def _check_claims(
        self, loaded: LoadedDecoder, params: SamplingParams, options: RequestOptions | None
    ) -> None:
        raise NotImplementedError

    async def _submit(self, engine: DecoderEngine, requests: list[EngineRequest]) -> None:
        raise NotImplementedError

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        engine, loaded = self._ready()
        params = params or SamplingParams()
        hold_s = self._settings.hold_s if hold_s is None else checked_hold(hold_s)
        self._check_claims(loaded, params, options)
        if params.n != 1:
            raise UnsupportedFeature(
                f"prefill creates one state per prompt, but n is {params.n}; use generate"
            )
        grammar = await loaded.compile_grammar(params, options)
        read = await loaded.requests.read(prompts, most=self._settings.max_queue)
        requests = loaded.requests.from_prompts(read, params, request_id, options=options, grammar=grammar)
        engine.check_room(requests)
        done = [hold(request, hold_s) for request in requests]
        await self._submit(engine, requests)
        try:
            await asyncio.gather(*done)
            states = [loaded.states.of(request) for request in requests]
        except BaseException:
            for request in requests:
                engine.cancel(request.request_id, request)
            raise
        return prefill_result(requests, states)

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        engine, loaded = self._ready()
        check_request_id(request_id)
        self._check_claims(loaded, state.params, options)
        loaded.states.check(state)
        if state.finish_reason is not None:  # prefill finished it: nothing is left to compute
            request = loaded.states.restore(
                state, loaded.requests, await loaded.compile_grammar(state.params, options)
            )
            request.clock.restart()
            stream = BufferedTokenStream(request_id, lambda: None)
            if request.first_delta is not None:
                stream.push(request.first_delta)
            stream.finish(state.finish_reason, request.usage(), request.timing())
            return DecodeResult(stream=stream)
        loop = asyncio.get_running_loop()
        stream = BufferedTokenStream(request_id, lambda: engine.cancel(request_id, stream))

        try:
            await engine.call(
                lambda: engine.continue_held(
                    loaded.states.find(engine, state), request_id, stream, loop, options=options
                )
            )
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return DecodeResult(stream=stream)

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        engine, loaded = self._ready()
        states = checked_states(states)
        self._check_claims(loaded, states[0].params, options)
        request = await loaded.resumed(states, request_id, options)
        request.stream = stream_of(engine, request)
        await self._submit(engine, [request])
        return request.stream

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        engine, loaded = self._ready()

        def read() -> list[memoryview]:
            (sequence,) = loaded.states.find(engine, state).sequences
            return [loaded.runner.read_block(block).data for block in sequence.blocks[: len(state.chunks)]]

        buffers = await engine.call(read)
        return await asyncio.to_thread(loaded.states.exported, state, buffers), buffers

    async def check_state(self, state: DecodeState) -> None:
        _, loaded = self._ready()
        self._check_claims(loaded, state.params, None)
        loaded.states.check(state)

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        await self.check_state(state)
        engine, loaded = self._ready()
        request = loaded.states.restore(state, loaded.requests, await loaded.compile_grammar(state.params))
        request.hold_s = self._settings.hold_s
        blocks = await asyncio.to_thread(_blocks, loaded, state, buffers)
        if state.finish_reason is None:
            try:
                await engine.call(lambda: engine.adopt(request, blocks, len(kv_prompt(state))))
            except asyncio.CancelledError:
                engine.cancel(request.request_id, request)
                raise
        return loaded.states.imported(state, request.salt)


def _blocks(loaded: LoadedDecoder, state: DecodeState, buffers: Sequence[memoryview]) -> list[memoryview]:
    """The verified pages of a state, in this instance's format."""
    blocks, converter = loaded.states.verified(state, buffers), loaded.states.converter(state)
    return blocks if converter is None else converter.converted(blocks, len(kv_prompt(state)))


def stream_of(engine: DecoderEngine, request: EngineRequest) -> BufferedTokenStream:
    """A stream whose ``cancel`` ends the request."""
    return BufferedTokenStream(request.request_id, lambda: engine.cancel(request.request_id, request))
