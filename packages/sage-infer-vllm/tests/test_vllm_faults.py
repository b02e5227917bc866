"""A real engine that dies, fails to start, is cancelled during the start, or restarts with other weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
from sage_infer.errors import CapabilityMismatch, EngineDead, ModelFileError, OutOfMemory, RequestCancelled
from sage_infer.schemas import ModelDescriptor, QuantizationProfile, SamplingParams
from sage_infer_testing.waiting import eventually
from vllm_live import shared_memory
from vllm_toys import have_vllm

pytestmark = [
    pytest.mark.skipif(
        not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
    )
]

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
NOTHING_LEFT_S = 120.0


@pytest.fixture
def clean(live: Any) -> Any:
    """No engine runs; afterwards no process and no shared memory may be left of what the test did."""
    live.stop()
    before = shared_memory()
    yield
    assert shared_memory() <= before
    assert not engine_processes()


def engine_processes() -> list[str]:
    """Names of living processes that vLLM started."""
    names = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if "VLLM::" in command and state != "Z" and _is_ours(folder):
                names.append(command)
    return names


def _is_ours(folder: Path) -> bool:
    """Started by this process: other people's engines may run on the machine."""
    try:
        environment = (folder / "environ").read_bytes()
    except OSError:
        return False
    return f"SAGE_INFER_VLLM_PARENT={os.getpid()}".encode() in environment


async def until_gone() -> None:
    await eventually(
        lambda: not engine_processes(), lambda: f"still there: {engine_processes()}", within_s=NOTHING_LEFT_S
    )


@pytest.mark.parametrize("victim", ["core", pytest.param("worker", marks=pytest.mark.vllm_newest)])
def test_a_killed_engine_ends_every_stream(live: Any, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The watch of the processes ends the streams, also where it comes after vLLM's own error by more than seconds.
    monkeypatch.setattr("sage_infer_vllm.engine.running._CAUSE_S", NOTHING_LEFT_S)
    before = shared_memory() if live._backend is None else None

    async def main(backend: Any) -> None:
        processes = backend._running.engine.processes
        streams = await backend.generate(["One", "Two", "Three"], ENDLESS)
        for stream in streams:
            await anext(aiter_keeping(stream))
        (core,) = processes.leaders
        target = core if victim == "core" else next(pid for pid in processes.members() if pid != core)
        os.kill(target, signal.SIGKILL)
        named = "EngineCore.* was killed by SIGKILL while" if victim == "core" else "while"
        for stream in streams:
            with pytest.raises(EngineDead, match=f"vLLM's engine ended: .*{named} .*open the backend again"):
                async for _ in stream:
                    pass
        assert all(stream.finish_reason == "error" for stream in streams)
        health = await backend.health()
        assert (health.status, bool(health.reason)) == ("dead", True)
        with pytest.raises(EngineDead, match="the engine has stopped"):
            await backend.generate("a", ENDLESS)
        assert backend.stats().running == 0
        await until_gone()

    backend = live.backend
    live.run(main(backend))
    live.stop()
    if before is not None:
        assert shared_memory() <= before
    (stream,) = live.run(live.backend.generate("Again", SamplingParams(max_tokens=2)))  # the next start works
    assert live.run(length(stream)) > 0


def aiter_keeping(stream: Any) -> Any:
    """An iterator that stays alive with the stream, so that leaving it is no cancellation."""
    stream.kept = iterator = aiter(stream)
    return iterator


async def length(stream: Any) -> int:
    return sum([len(delta.token_ids) async for delta in stream])


@pytest.mark.vllm_newest
def test_a_too_small_cache_is_out_of_memory(live: Any, clean: None) -> None:
    backend = live.make(kv_cache_gb=0.005)
    with pytest.raises(
        OutOfMemory, match=r"not enough memory: .*memory for the cache blocks.*raise kv_cache_gb"
    ):
        live.run(backend.start())
    live.run(backend.close())


@pytest.mark.vllm_newest
def test_a_damaged_folder_is_a_model_file_error(live: Any, clean: None, tmp_path: Path) -> None:
    source = live.run(folder_of(live))
    broken = tmp_path / "model"
    shutil.copytree(source, broken)
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    model = ModelDescriptor(model_id="broken", model_type="llm", model_path=str(broken))
    backend = type(live.make())(model, **live.options)
    with pytest.raises(ModelFileError, match="vLLM cannot load the model"):
        live.run(backend.start())
    live.run(backend.close())
    weights.rename(broken / "model-00001-of-00002.safetensors")
    (broken / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(ModelFileError, match="1 of 2 weight files missing: model-00002"):
        live.run(type(backend)(model, **live.options).start())  # before anything is started


async def folder_of(live: Any) -> Path:
    from sage_infer_vllm.models.prepare import loadable_folder

    return loadable_folder(live.model.model_path, cache_dir=None, progress=lambda stage, share: None)


@pytest.mark.vllm_newest
def test_a_cancelled_start_leaves_nothing(live: Any, clean: None) -> None:
    """As Ctrl-C does while the model loads."""

    async def main() -> None:
        backend, loading = live.make(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def report(stage: str, share: float | None) -> None:
            if stage == "loading weights":
                loop.call_soon_threadsafe(loading.set)

        backend.on_progress(report)
        starting = asyncio.ensure_future(backend.start())
        await loading.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until_gone()
        await backend.close()

    live.run(main())


@pytest.mark.vllm_newest
def test_a_profile_on_a_running_engine_drains_and_starts_it_again(live: Any) -> None:
    async def main() -> None:
        backend = live.backend
        with pytest.raises(CapabilityMismatch, match="vLLM on cpu cannot quantize to 4-bit weights"):
            backend.load_quant_profile(QuantizationProfile(profile_id="w4", weight_bits=4))
        assert backend.get_capability().quant_profile_id is None
        (stream,) = await backend.generate(
            "One", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        )
        backend.load_quant_profile(QuantizationProfile(profile_id="short", max_sequence_length=256))
        assert (await backend.health()).status == "starting"
        waiting = asyncio.ensure_future(backend.generate("Two", SamplingParams(temperature=0, max_tokens=4)))
        assert await length(stream) == 30  # the open request ends as it would have
        (after,) = await waiting
        assert await length(after) > 0
        capability = backend.get_capability()
        assert (capability.quant_profile_id, capability.max_sequence_length) == ("short", 256)

    live.use(live.make(adapters={}))
    live.run(main())
    live.stop()


@pytest.mark.vllm_newest
def test_presets_reach_the_engine_or_are_refused(live: Any, clean: None) -> None:
    # vLLM keeps fp8 on a CPU where the processor has AVX-512, and says so elsewhere (test_vllm_process).
    fp8 = "avx512f" in Path("/proc/cpuinfo").read_text()
    backend = live.make(kv_schema={"page_size": 64, **({"preset": "fp8"} if fp8 else {})})

    async def main() -> None:
        await backend.start()
        schema = backend.get_kv_schema()
        assert (schema.dtype, schema.page_size) == ("fp8_e4m3" if fp8 else "fp32", 64)
        (stream,) = await backend.generate("Open", ENDLESS)
        reading = asyncio.ensure_future(length(stream))
        await asyncio.sleep(0)
        await backend.close()
        with pytest.raises(RequestCancelled) as caught:
            await reading
        assert caught.value.by == "close"

    live.run(main())
    with pytest.raises(CapabilityMismatch, match="does not support int8 KV; available: fp8"):
        live.run(live.make(kv_schema={"preset": "int8"}).start())


def test_a_missing_model_is_reported_immediately(live: Any, tmp_path: Path) -> None:
    model = attrs.evolve(live.model, model_path=str(tmp_path / "nothing"))
    with pytest.raises(ModelFileError, match="no such file or folder"):
        live.run(type(live.make())(model).start())
