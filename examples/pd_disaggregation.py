"""Prefill in one process, decode in another: the KV travels over TCP, shared memory or NIXL (wheel sage-infer-nixl).

    python examples/pd_disaggregation.py [--source openvino] [--target openvino] [--transport tcp] [--prompts 3]

The child process computes the prompt and publishes its KV. This process fetches the KV, continues with the first token
and compares the text with that of one instance. The engines may differ: ``--source vllm --target openvino``. Both then
compute in float32, where their texts are equal except at near ties.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from multiprocessing.connection import Connection
from typing import Any, cast

from sage_infer import SageInferError, SamplingParams, open_backend
from sage_infer.contracts import InferenceBackend, KVTransfer
from sage_infer.plugins import open_endpoint, open_transport
from sage_infer.schemas import DecodeState
from sage_infer.schemas.codec import from_json, to_json
from sage_infer_transport import fetch_state, publish_state, withdraw_state

QUESTION = "In one sentence, why does {} matter to a model that generates one token at a time?"
SUBJECTS = ("memory bandwidth", "the KV cache", "batching", "the length of the prompt", "quantization")
PARAMS = SamplingParams(temperature=0, max_tokens=24)
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "openvino": {"kv_cache_gb": 0.25, "weight_format": "f32"},
    "vllm": {"kv_cache_gb": 0.5, "dtype": "float32", "eager": True, "max_sequence_length": 2048},
}


def opened(backend: str) -> AbstractAsyncContextManager[InferenceBackend]:
    return open_backend(backend, model="smollm2-135m", serves="llm", **OPTIONS.get(backend, {}))


def prefill(pipe: Connection, backend: str, transport: str) -> None:
    """The child process: prompts in, states out."""
    try:
        asyncio.run(serve_prefill(pipe, backend, transport))
    except SageInferError as error:
        sys.exit(f"error of the prefill process: {error.message}")
    except EOFError:
        sys.exit(1)  # the other side ended


async def serve_prefill(pipe: Connection, backend: str, transport: str) -> None:
    async with opened(backend) as engine:
        here = open_endpoint(transport)
        pipe.send("ready")
        while (request := await asyncio.to_thread(pipe.recv)) is not None:
            prompt, request_id = request
            result = await engine.prefill(prompt, request_id=request_id, params=PARAMS)
            published = await publish_state(result.states[0], source=cast(KVTransfer, engine), endpoint=here)
            pipe.send(to_json(published))
            await asyncio.to_thread(pipe.recv)  # the other side has the KV
            withdraw_state(published, endpoint=here)
            await engine.abort(request_id)
        here.close()


async def main(arguments: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")
    pipe, far = context.Pipe()
    child = context.Process(target=prefill, args=(far, arguments.source, arguments.transport))
    child.start()
    far.close()  # so that the pipe ends if the child does
    try:
        async with opened(arguments.target) as engine:
            return await serve_decode(pipe, engine, arguments)
    finally:
        pipe.close()  # which ends the child
        await asyncio.to_thread(child.join)


async def serve_decode(pipe: Connection, engine: InferenceBackend, arguments: argparse.Namespace) -> int:
    here, equal = open_endpoint(arguments.transport), 0
    transport = open_transport(arguments.transport)
    await asyncio.to_thread(pipe.recv)
    for number in range(arguments.prompts):
        question = QUESTION.format(SUBJECTS[number % len(SUBJECTS)])
        prompt = await engine.render_chat([{"role": "user", "content": question}])
        (alone,) = await engine.generate(prompt, PARAMS)
        expected = "".join([delta.text async for delta in alone])

        pipe.send((prompt, f"pd-{number}"))
        state = from_json(await asyncio.to_thread(pipe.recv), DecodeState)
        began = time.perf_counter()
        state, report = await fetch_state(
            state, target=cast(KVTransfer, engine), endpoint=here, transport=transport
        )
        seconds = time.perf_counter() - began
        pipe.send("fetched")
        decoding = await engine.decode(state, request_id=state.request_id)
        text = "".join([delta.text async for delta in decoding.stream])
        equal += text == expected
        print(f"{question}\n  {text.strip()}")
        print(
            f"  {report.moved_bytes / 2**20:.1f} MiB of KV in {len(report.statuses)} chunks, moved and imported "
            f"in {1e3 * seconds:.0f} ms; {'same text as' if text == expected else 'NOT the text of'} one instance"
        )
    pipe.send(None)
    await transport.close()
    here.close()
    return 0 if equal == arguments.prompts else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--source", default="openvino", metavar="BACKEND", help="backend that computes the prompts"
    )
    parser.add_argument("--target", default="openvino", metavar="BACKEND", help="backend that continues")
    parser.add_argument("--transport", default="tcp", help="local, tcp or nixl")
    parser.add_argument("--prompts", type=int, default=3)
    try:
        sys.exit(asyncio.run(main(parser.parse_args())))
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except EOFError:
        sys.exit("error: the prefill process ended; its message is above")
