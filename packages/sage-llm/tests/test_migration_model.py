"""Streams of the real embedded engine continue exactly on another instance."""

from __future__ import annotations

import asyncio

import plane
from plane import read, running_plane, small_llm, start_all, until


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
