"""Streams of the real embedded engine continue exactly on another instance."""

from __future__ import annotations

import asyncio

import plane
import pytest
from plane import read, running_plane, small_llm, start_all, until
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState, Prompt, SamplingParams

pytestmark = pytest.mark.long


def test_sixteen_streams_survive_the_loss_of_an_instance(smollm2: str, cache_dir: str) -> None:
    async def main() -> None:
        params = plane.mixed_params(16, 48)
        async with running_plane([small_llm(smollm2, cache_dir)]) as manager:
            undisturbed = await asyncio.gather(*map(read, await start_all(manager, params)))
            streams = await start_all(manager, params)
            reading = [asyncio.ensure_future(read(stream)) for stream in streams]
            first, _ = manager.fleet.replicas.values()
            assert first.instance is not None
            lost = first.instance
            await until(lambda: lost.running >= 4)
            assert first.handle is not None
            await first.handle.kill()
            disturbed = await asyncio.gather(*reading)
            assert disturbed == undisturbed
            assert manager.dispatcher.migrations >= 4
            assert manager.dispatcher.ends == {"finished": 32, "cancelled": 0, "refused": 0, "failed": 0}
            await until(lambda: first.word == "running")
            assert first.instance is not lost
            assert first.instance.generation > lost.generation

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_a_request_that_began_elsewhere_is_continued(smollm2: str, cache_dir: str) -> None:
    async def main() -> None:
        params = SamplingParams(temperature=0.9, top_k=8, seed=4, max_tokens=24, frequency_penalty=0.3)
        async with running_plane([small_llm(smollm2, cache_dir)]) as manager:
            prompt = tuple(await manager.tokenize("The lighthouse stood"))
            (stream,) = await manager.generate(Prompt(token_ids=prompt), params)
            tokens, text, reason, usage = await read(stream)
            head = await manager.detokenize(tokens[:9])
            state = DecodeState(
                request_id="there", model_id=manager.list_models()[0].model_id, instance_id="elsewhere",
                prompt_token_ids=prompt, output_token_ids=tokens[:9], delivered_chars=len(head), params=params,
                seed=4,
            )  # fmt: skip
            again = await read(await manager.resume([state], request_id="here"))
            assert again == (tokens[9:], text[len(head) :], reason, usage)
            with pytest.raises(InvalidRequest, match="no state to resume"):
                await manager.resume([], request_id="none")

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))
