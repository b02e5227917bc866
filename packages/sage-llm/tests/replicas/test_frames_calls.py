"""What the kits do not look at: answer formats, long parameters, consumers that take deltas, and limits."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from sage_infer.contracts import KVEvents, KVSnapshot, ReplicaExit
from sage_infer.errors import ConfigError, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, QuantizationProfile, SamplingParams, TokenDelta
from sage_infer.sdk.answers import ModelFormat, answer_format
from sage_infer_testing.waiting import eventually
from sage_llm.replicas import calls
from sage_llm.replicas.backends import EmbeddingReplica, InferenceReplica
from sage_llm.replicas.connect import connect
from sage_llm.replicas.protocol import CARRIED, carried
from sage_llm.replicas.run_folder import run_folder
from sage_llm.replicas.server import describe
from served_toys import SlowLLM, connected, llm_spec, serving

WAIT_S = 120.0


@pytest.mark.parametrize("template", ["<tool_call>", "<|python_tag|> ipython", "[TOOL_CALLS] <think>", ""])
def test_answer_formats_travel(template: str) -> None:
    form = answer_format(template, special_tokens=("<think>",))
    assert calls.format_of(calls.format_data(form)) == form


def test_formats_of_others_do_not_travel() -> None:
    assert calls.format_data(None) is None
    assert calls.format_of(None) is None
    strange = attrs.evolve(
        answer_format("<tool_call>"),
        forms=(attrs.evolve(answer_format("<tool_call>").forms[0], opens="<x>"),),
    )
    assert calls.format_data(strange) is None
    unknown = calls.FormatData("of a later version", (("<x>", ""),), None, False)
    assert calls.format_of(unknown) is None


class Reading(SlowLLM):
    async def answer_format(self) -> ModelFormat:
        return answer_format("<tool_call>")


def test_the_client_reads_answers_like_its_backend() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            assert await client.answer_format() is None
        async with serving(engine=Reading()) as (_, address), connected(address) as client:
            assert await client.answer_format() == answer_format("<tool_call>")

    asyncio.run(main())


class Prefetching(SlowLLM):
    async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
        return len(token_ids) + len(cache_salt)


def test_hints_of_waiting_requests_travel() -> None:
    async def main() -> None:
        async with serving(engine=Prefetching()) as (_, address), connected(address) as client:
            assert await client.prefetch_kv([1, 2, 3], cache_salt="ab") == 5
        async with serving() as (_, address), connected(address) as client:
            with pytest.raises(UnsupportedFeature, match="no method 'prefetch_kv'"):
                await client.prefetch_kv([1])

    asyncio.run(main())


def test_long_parameters() -> None:
    params = SamplingParams(guided=GuidedDecoding(choice=tuple(f"choice {i}" for i in range(900))))
    assert calls.params_of(calls.packed_params(params)) == params
    with pytest.raises(InvalidRequest, match="params cannot be sent"):
        calls.packed_params(SamplingParams(guided=GuidedDecoding(json_schema={"const": 1 << 80})))


def test_deltas_can_be_taken_without_a_task_switch() -> None:
    async def main() -> None:
        async with serving(window=4) as (_, address), connected(address) as client:
            (stream,) = await client.generate("Once", SamplingParams(max_tokens=40, ignore_eos=True))
            taken: list[TokenDelta] = []
            left: list[TokenDelta] = []

            def take(delta: TokenDelta) -> bool:
                if len(taken) % 3 == 2 and not (left and left[-1] is delta):
                    return False
                taken.append(delta)
                return True

            stream.on_delta(take)  # type: ignore[attr-defined]
            async for delta in stream:
                left.append(delta)
                taken.append(delta)
            assert sum(len(delta.token_ids) for delta in taken) == 40
            assert left, "nothing was left to the loop"

    asyncio.run(main())


def test_only_features_on_the_list_are_claimed() -> None:
    async def main() -> None:
        async with serving() as (engine, address), connected(address) as client:
            behind = engine.get_capability()
            assert "quant_profile" in behind.features
            assert client.get_capability() == carried(behind)
            assert set(client.get_capability().features) == set(behind.features) & CARRIED
            with pytest.raises(UnsupportedFeature):
                client.load_quant_profile(QuantizationProfile(profile_id="p", weight_bits=8))
            assert client.get_kv_schema() == engine.get_kv_schema()

    asyncio.run(main())


def test_before_the_start() -> None:
    async def main() -> None:
        for client in (InferenceReplica("unix:/x"), EmbeddingReplica("unix:/x")):
            assert (await client.health()).status == "starting"
            assert client.stats().running == 0
            assert client.health_reason == ""
            await client.abort("nobody")
            await client.close()

    asyncio.run(main())


def test_the_run_folder_must_be_private(tmp_path: Path) -> None:
    open_to_others = tmp_path / "open"
    open_to_others.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        run_folder(open_to_others)
    long = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long"):
        run_folder(long)


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR", "SAGE_LLM_RUN_FOLDER"])
def test_the_run_folder_follows_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.delenv("SAGE_LLM_RUN_FOLDER", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(variable, str(short_folder))
    found = run_folder()
    assert short_folder in (found, found.parent)
    assert found.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def short_folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:
        yield Path(folder)


class Far:
    """Handle of a replica that runs until the test ends."""

    def __init__(self, address: str, engine: SlowLLM) -> None:
        self.spec, self.backend = llm_spec(), None
        self.descriptor = describe(engine, self.spec, address)

    async def wait(self) -> ReplicaExit:
        return await asyncio.Future()


def test_kv_events_reach_the_callback_in_order() -> None:
    async def main() -> None:
        async with serving() as (engine, address):
            replica = await connect(Far(address, engine))  # type: ignore[arg-type]
            found: list[KVSnapshot | KVEvents] = []
            replica.on_kv(found.append)
            await eventually(lambda: bool(found), "no snapshot", within_s=WAIT_S)
            for text in ("a long prompt with several blocks", "another long prompt with other blocks"):
                (stream,) = await replica.backend.generate(
                    text, SamplingParams(max_tokens=1, ignore_eos=True)
                )
                async for _ in stream:
                    pass
            await eventually(lambda: len(found) >= 3, "no events", within_s=WAIT_S)
            assert isinstance(found[0], KVSnapshot)
            assert {one.generation for one in found} == {replica.descriptor.generation}
            assert [one.seq for one in found] == list(range(found[0].seq, found[0].seq + len(found)))
            engine.cache.events.clear()  # the engine forgets events, so that the reader sees a gap
            engine.cache.events.extend(
                KVEvents(generation=engine.cache.generation, seq=seq) for seq in range(1, 9)
            )
            engine.cache.events[found[-1].seq : found[-1].seq + 1] = []
            engine.cache.wake()
            await eventually(
                lambda: any(isinstance(one, KVSnapshot) for one in found[1:]),
                "no snapshot after a gap",
                within_s=WAIT_S,
            )
            await replica.close()

    asyncio.run(main())
