"""Reports of a busy instance; the contract kit tests the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from openvino_toy import Toy, descriptor, greedy, run, tokens
from sage_infer.contracts import TextCodec
from sage_infer.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.models.model_files import open_texts

PROMPT = list(range(30, 43))


def test_gauges_of_waiting_and_running_requests() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=1) as toy:
            idle = toy.backend.report()
            assert (idle.steps, idle.step_s, idle.oldest_wait_s) == (0, None, 0)
            toy.runner.gate.clear()
            streams = [await toy.generate(PROMPT, greedy(5))]
            await toy.in_step()
            streams += [await toy.generate([1] * 7, greedy(5)) for _ in range(2)]
            report = toy.backend.report()
            assert (report.running, report.waiting, report.state) == (1, 2, "ready")
            assert report.waiting_prompt_tokens == len(PROMPT) + 2 * 7  # the first one's is being computed
            assert report.oldest_wait_s > 0
            toy.runner.gate.set()
            await asyncio.gather(*map(tokens, streams))
            await toy.idle()
            done = toy.backend.report()
            assert (done.waiting_prompt_tokens, done.running_context_tokens, done.oldest_wait_s) == (0, 0, 0)
            assert done.kv_blocks_cached == 4 + 2  # the two that are alike share theirs
            assert done.steps >= 5 * 3 - 2
            assert done.step_s is not None
            assert done.seq == report.seq + 1

    run(main())


def test_context_tokens_count_held_kv() -> None:
    async def main() -> None:
        async with Toy() as toy:
            toy.runner.gate.clear()
            stream = await toy.generate(PROMPT, greedy(100))
            await toy.in_step()
            seen: list[int] = []

            def look() -> None:
                seen.append(toy.backend.stats().running_context_tokens)

            toy.runner.before_step = look
            toy.runner.gate.set()
            await tokens(stream)
            assert len(seen) == 99
            assert seen[0] >= len(PROMPT)
            assert seen == sorted(seen)
            assert seen[-1] <= len(PROMPT) + 100

    run(main())


def test_a_closed_instance_is_dead() -> None:
    async def main() -> None:
        async with Toy() as toy:
            identity = toy.backend.describe()
            assert identity.model_ids == ("toy",)
            assert identity.addresses == ("inproc:",)
            assert set(identity.versions) == {"openvino"}
            result = await toy.backend.prefill(PROMPT, request_id="a")
            assert result.states[0].instance_id == identity.instance_id
        assert toy.backend.report().state == "dead"

    run(main())


def test_progress_names_every_stage(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    model = descriptor(tiny_gguf(), "tiny")

    async def stages() -> list[str]:
        backend = OpenVINOBackend(model, cache_dir=str(tmp_path / "cache"), kv_cache_gb=0.01)
        reports: list[str] = []
        backend.on_progress(lambda stage, share: reports.append(stage))
        try:
            await backend.start()
        finally:
            await backend.close()
        return list(dict.fromkeys(reports))

    assert run(stages()) == [
        "reading", "converting", "writing", "checking", "compiling", "warming up"
    ]  # fmt: skip
    assert run(stages()) == ["compiling", "warming up"]


def test_texts_without_weights(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    async def main() -> None:
        texts = open_texts(descriptor(tiny_gguf(), "tiny"))
        assert isinstance(texts, TextCodec)
        ids = await texts.tokenize("hello world")
        assert await texts.detokenize(ids) == "hello world"
        assert await texts.detokenize(await texts.tokenize("hello world " * 1000)) == "hello world " * 1000
        with pytest.raises(InvalidRequest, match="token id 261 is not in the vocabulary of 261"):
            await texts.detokenize([261])
        with pytest.raises(UnsupportedFeature, match="no chat template"):
            await texts.render_chat([{"role": "user", "content": "x"}])
        with pytest.raises(ModelNotFound):
            open_texts(ModelDescriptor(model_id="x", model_type="llm", model_path=str(tmp_path / "none")))

    run(main())


def test_the_codec_and_the_engine_agree(smollm2_gguf: Path, cache_dir: Path) -> None:
    async def main() -> None:
        model = descriptor(smollm2_gguf, "smollm2-135m")
        texts = open_texts(model)
        backend = OpenVINOBackend(model, cache_dir=str(cache_dir), kv_cache_gb=0.05, threads=1)
        await backend.start()
        try:
            messages = [{"role": "user", "content": "Grüße 🙂"}]
            prompt = await texts.render_chat(messages)
            assert prompt == await backend.render_chat(messages)
            assert await texts.tokenize(prompt) == await backend.tokenize(prompt)
            assert texts.vocab_size == 49152
        finally:
            await backend.close()

    run(main())
