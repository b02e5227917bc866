"""Two child processes with the real embedded engine: killed, stopped, drained and restarted under 16 streams."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import plane
import pytest
from plane import read, running_plane, small_llm, start_all, until
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.replicas.local import SERVER, LocalExecutor
from sage_llm.replicas.record import started_at
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE

pytestmark = pytest.mark.long

PARAMS = plane.mixed_params(16, 48)
# A busy machine may stop a process for a second: only what is silent for longer is lost here.
SETTINGS = ControlPlaneSettings(
    health=HealthLimits(suspect_s=2.0, lost_s=4.0, stuck_s=plane.GUARD_S, revive_s=plane.GUARD_S),
    restarts=RestartLimits(first_s=0.1, most=100),
)


@pytest.fixture(autouse=True)
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))
    return folder


def on_children(smollm2: str, cache_dir: str, test: Any) -> None:
    async def main() -> None:
        model = small_llm(smollm2, cache_dir, threads=1)
        executor = LocalExecutor(server=SERVER, grace_s=0)
        async with running_plane([model], executor, SETTINGS) as manager:
            expected = await asyncio.gather(*map(read, await start_all(manager, PARAMS)))
            await test(manager, expected)
            ends = manager.dispatcher.ends
            assert ends["failed"] == ends["refused"] == ends["cancelled"] == 0, ends

    asyncio.run(asyncio.wait_for(main(), 2 * plane.GUARD_S))


async def streaming(manager: ControlPlaneManager) -> tuple[list[Any], Any]:
    """Sixteen streams that are being read, and a replica that runs some of them."""
    reading = [asyncio.ensure_future(read(stream)) for stream in await start_all(manager, PARAMS)]
    replicas = [r for r in manager.fleet.replicas.values() if r.word == "running"]
    await until(lambda: any(r.instance and r.instance.running >= 2 for r in replicas))
    return reading, max(replicas, key=lambda r: r.instance.running if r.instance else 0)


def test_kill_and_stop(smollm2: str, cache_dir: str) -> None:
    async def test(manager: ControlPlaneManager, expected: list[Any]) -> None:
        reading, victim = await streaming(manager)
        before = victim.instance.generation
        os.kill(victim.handle.pid, signal.SIGKILL)
        assert await asyncio.gather(*reading) == expected
        assert manager.dispatcher.migrations >= 2
        await until(lambda: victim.word == "running")
        assert victim.instance.generation > before

        reading, victim = await streaming(manager)
        instance, process = victim.instance, victim.handle.pid
        os.kill(process, signal.SIGSTOP)
        try:
            await until(lambda: instance.word in ("lost", "dead"))
        finally:
            os.kill(process, signal.SIGCONT)
        assert await asyncio.gather(*reading) == expected
        await until(lambda: victim.word == "running" and victim.instance.is_open)
        again = await asyncio.gather(*map(read, await start_all(manager, PARAMS)))
        assert again == expected

    on_children(smollm2, cache_dir, test)


def test_drain_and_rolling_restart(smollm2: str, cache_dir: str) -> None:
    async def test(manager: ControlPlaneManager, expected: list[Any]) -> None:
        reading, victim = await streaming(manager)
        process = victim.handle.pid
        drained = await manager.drain(victim.replica_id, deadline_s=0.0)
        assert drained.migrated >= 1
        assert not started_at(process)
        assert await asyncio.gather(*reading) == expected

        assert await manager.scale("smollm2-135m", 2) == [victim.replica_id]
        reading, _ = await streaming(manager)
        results = await manager.restart()
        assert len(results) == 2
        assert await asyncio.gather(*reading) == expected

    on_children(smollm2, cache_dir, test)
