"""Prefill and decode on two real engines whose KV pages have other sizes: the one that imports converts."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import SamplingParams
from sage_infer.sdk.checksums import checksum
from vllm_apart import generated, prompt_of, read, used_in_engine
from vllm_toys import have_vllm

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm("0.23"),
        reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
    ),
]

LARGE, SMALL = 128, 32
LENGTHS = (SMALL + 1, LARGE, 300)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)


async def exported(source: Any, prompt: list[int], params: SamplingParams) -> tuple[Any, list[memoryview]]:
    result = await source.prefill(prompt, request_id="moved", params=params)
    state, buffers = await source.export_kv(result.states[0])
    await source.abort("moved")
    return state, [memoryview(bytes(buffer)) for buffer in buffers]


async def continued(target: Any, state: Any, buffers: list[memoryview]) -> dict[str, Any]:
    state = await target.import_kv(state, buffers)
    return await read((await target.decode(state, request_id="moved")).stream)


def test_pages_of_another_size(live: Any) -> None:
    small = live.make(kv_schema={"page_size": SMALL}, kv_cache_gb=0.2, adapters={})

    async def main() -> None:
        large = live.backend
        await small.start()
        try:
            for source, target, size in ((large, small, LARGE), (small, large, SMALL)):
                assert source.get_kv_schema().page_size == size
                for length in LENGTHS:
                    prompt, params = prompt_of(length, start=3000 + length), SEEDED if length % 2 else GREEDY
                    state, buffers = await exported(source, prompt, params)
                    assert len(buffers) == -(-length // size)
                    expected = await generated(target, prompt, params)
                    assert await continued(target, state, buffers) == expected, (size, length)
                assert await used_in_engine(target) == 0
            await check_that_the_pages_are_used(large, small)
        finally:
            await small.close()

    assert live.backend is not None
    live.run(main())


async def check_that_the_pages_are_used(source: Any, target: Any) -> None:
    """Pages of zeros lead to other tokens, so that equal ones are not computed there."""
    state, buffers = await exported(source, prompt_of(300, start=3300), GREEDY)
    expected = await generated(target, prompt_of(300, start=3300), GREEDY)
    empty = [memoryview(bytes(len(buffer))) for buffer in buffers]
    chunks = [
        attrs.evolve(chunk, checksum=checksum(page)) for chunk, page in zip(state.chunks, empty, strict=True)
    ]
    found = await continued(target, attrs.evolve(state, chunks=chunks), empty)
    assert found["tokens"] != expected["tokens"]
    assert found["tokens"][0] == expected["tokens"][0]
    with pytest.raises(
        CapabilityMismatch, match=r"another format \(page_size\), and the state does not name its"
    ):
        await target.import_kv(attrs.evolve(state, weights_id="", extensions={}), buffers)
