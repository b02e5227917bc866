"""Prompts computed in one child process and continued in another, with the real embedded engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import plane
import pytest
from plane import read, running_plane, small_llm, until
from sage_infer.contracts import TokenStream
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.commands.tables import decision_lines
from sage_llm.manager.fleet import Replica
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.pd import HandOverSettings
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.replicas.local import SERVER, LocalExecutor
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE

pytestmark = pytest.mark.long

PAGE = 32
SUBJECTS = ("rain", "bread", "rivers", "clocks", "maps", "trees", "salt", "glass", "wool", "iron")
QUESTIONS = [f"{ask} {subject}." for ask in ("Tell me about", "Write a line on") for subject in SUBJECTS]
PARAMS = plane.mixed_params(len(QUESTIONS), 8)


def settings(transport: str = "local") -> ControlPlaneSettings:
    """Every prompt is computed apart. Only an instance that is silent for long is lost."""
    return ControlPlaneSettings(
        policy="pd:min_tokens=0,delay_s=1000",
        health=HealthLimits(suspect_s=2.0, lost_s=4.0, stuck_s=plane.GUARD_S, revive_s=plane.GUARD_S),
        restarts=RestartLimits(first_s=0.1, most=100),
        hand_over=HandOverSettings(transport=transport),
    )


@pytest.fixture(autouse=True)
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))


def on_children(
    smollm2: str,
    cache_dir: str,
    test: Callable[[ControlPlaneManager, Replica, Replica], Awaitable[None]],
    transport: str = "local",
    **options: Any,
) -> None:
    """Run a test with a prefill and a decode replica; afterwards, no instance holds anything."""

    async def main() -> None:
        options.update(threads=1, weight_format="f32")
        model = small_llm(smollm2, cache_dir, replicas=1, prefill=1, **options)
        executor = LocalExecutor(server=SERVER, grace_s=0)
        async with running_plane([model], executor, settings(transport)) as manager:
            prefill, decode = manager.fleet.replicas.values()
            assert (prefill.spec.role, decode.spec.role) == ("prefill", "decode")
            await test(manager, prefill, decode)
            await until(lambda: all(map(is_empty, (prefill, decode))))

    asyncio.run(asyncio.wait_for(main(), 2 * plane.GUARD_S))


def is_empty(replica: Replica) -> bool:
    instance = replica.instance
    if replica.word != "running" or instance is None or instance.report is None:
        return False
    report = instance.report
    return not instance.attempts and report.kv_blocks_free == report.kv_blocks_total


async def asked(
    manager: ControlPlaneManager, number: int, params: SamplingParams | None = None
) -> TokenStream:
    message = {"role": "user", "content": QUESTIONS[number]}
    return await manager.chat(
        [message], params or PARAMS[number], request_id=f"q{number}-{os.urandom(4).hex()}"
    )


async def alone(
    decode: Replica, manager: ControlPlaneManager, number: int, params: SamplingParams | None = None
) -> Any:
    """The same request on one instance, without the control plane."""
    assert decode.instance is not None
    prompt = await manager.render_chat([{"role": "user", "content": QUESTIONS[number]}])
    (stream,) = await decode.instance.backend.generate([prompt], params or PARAMS[number])
    return await read(stream)


async def disturbed_and_alone(
    manager: ControlPlaneManager, decode: Replica, count: int, disturb: Callable[[], object]
) -> tuple[list[Any], list[Any]]:
    """The outputs of so many requests through the control plane, and on one instance."""
    expected = [await alone(decode, manager, number) for number in range(count)]
    asking = [asyncio.ensure_future(asked(manager, number)) for number in range(count)]
    disturb()
    return await asyncio.gather(*map(read, await asyncio.gather(*asking))), expected


def test_twenty_prompts_equal_one_instance(smollm2: str, cache_dir: str) -> None:
    async def test(manager: ControlPlaneManager, prefill: Replica, decode: Replica) -> None:
        count = len(QUESTIONS)
        found, expected = await disturbed_and_alone(manager, decode, count, lambda: None)
        assert found == expected
        hand_overs = manager.dispatcher.hand_overs
        assert (hand_overs.done, hand_overs.given_up) == (count, 0)
        receipts = [receipt.to_json() for receipt in manager.dispatcher.placement.receipts.values()]
        assert {receipt["prefill_instance"] for receipt in receipts} == {prefill.replica_id}
        assert {receipt["instance"] for receipt in receipts} == {decode.replica_id}
        assert sum(receipt["transfer"]["nbytes"] for receipt in receipts) == hand_overs.nbytes > 0

    on_children(smollm2, cache_dir, test)


def test_kv_moves_through_a_store(smollm2: str, cache_dir: str) -> None:
    """Full pages of each prompt are in the store; the decode replica computes the rest."""
    pytest.importorskip("sage_infer_kvstore", reason="it brings the store `paged`")
    store = {"store": "paged", "name": f"pd-{os.urandom(6).hex()}", "capacity_gb": 0.05}

    async def test(manager: ControlPlaneManager, prefill: Replica, decode: Replica) -> None:
        count = 3
        assert decode.instance is not None
        engine = decode.instance.backend
        prompts = [
            " ".join(f"Note {number} on {subject}, which matters." for subject in SUBJECTS)
            for number in range(count)
        ]
        found = []
        for prompt, params in zip(prompts, PARAMS, strict=False):
            (stream,) = await manager.generate([prompt], params)
            found.append(await read(stream))
        receipts = [receipt.to_json() for receipt in manager.dispatcher.placement.receipts.values()]
        hand_overs = manager.dispatcher.hand_overs
        assert (hand_overs.done, hand_overs.given_up) == (count, 0)
        assert {receipt["prefill_instance"] for receipt in receipts} == {prefill.replica_id}
        for receipt in receipts:
            assert receipt["cached_tokens"] == receipt["prompt_tokens"] // PAGE * PAGE > PAGE
        shown = decision_lines(receipts[-1])[-1]
        assert shown.endswith(f"{receipts[-1]['cached_tokens']} tokens of KV from its caches and its store")
        for prompt, params, seen in zip(prompts, PARAMS, found, strict=False):
            own = RequestOptions(cache_salt="computed here")
            (stream,) = await engine.generate([prompt], params, options=own)
            assert await read(stream) == seen

    on_children(smollm2, cache_dir, test, "store", kv_store=store, kv_store_wait_s=plane.GUARD_S)


def test_the_prefill_replica_is_killed(smollm2: str, cache_dir: str) -> None:
    """Over TCP. Whether a request was handed over, is moving or waits there, it ends as on one instance."""

    async def test(manager: ControlPlaneManager, prefill: Replica, decode: Replica) -> None:
        handle = prefill.handle
        assert handle is not None

        def kill() -> None:
            hand_overs = manager.dispatcher.hand_overs
            watching = asyncio.ensure_future(until(lambda: hand_overs.done >= 2))
            watching.add_done_callback(lambda _: os.kill(handle.pid, signal.SIGKILL))

        found, expected = await disturbed_and_alone(manager, decode, 8, kill)
        assert found == expected
        ends = manager.dispatcher.ends
        assert (ends["finished"], ends["failed"]) == (8, 0)
        await until(lambda: prefill.instance is not None and prefill.restarts.total == 1)

    on_children(smollm2, cache_dir, test, "tcp")
