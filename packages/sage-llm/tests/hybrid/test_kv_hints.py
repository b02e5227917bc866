"""Requests that wait in the control plane: the instance that they will probably run on moves their KV up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from plane import read, until
from sage_infer.errors import Overloaded, UnsupportedFeature
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.commands.tables import decision_lines
from sage_llm.manager.kv import hints as kv_hints
from toy_encoder import on_encoders, quick
from toy_engine import ToyEngine

PARAMS = SamplingParams(temperature=0.0, max_tokens=8)


class Told:
    """What engines were told; ``pages`` or an error is their answer."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.prompts: list[tuple[tuple[int, ...], str]] = []
        self.answer: int | Exception = 3
        told = self

        class TieredEngine(ToyEngine):
            async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
                told.prompts.append((tuple(token_ids), cache_salt))
                if isinstance(told.answer, Exception):
                    raise told.answer
                return told.answer

        patch.setattr("toy_encoder.ToyEngine", TieredEngine)


async def waiting_behind(manager: Any, executor: Any, count: int) -> list[asyncio.Task[Any]]:
    """A full engine, and ``count`` requests that wait for it."""
    (engine,) = executor.engines
    engine.gate.clear()

    async def one(number: int) -> None:
        options = RequestOptions(cache_salt=f"salt {number}")
        (stream,) = await manager.generate(f"prompt {number}", PARAMS, "toy", options=options)
        await read(stream)

    full = engine.max_batch_size
    tasks = [asyncio.ensure_future(one(number)) for number in range(full + count)]
    await until(lambda: len(manager.dispatcher.placement.waiting()) >= count)
    return tasks


async def finish(executor: Any, tasks: list[asyncio.Task[Any]]) -> None:
    (engine,) = executor.engines
    engine.gate.set()
    await asyncio.gather(*tasks)


def test_waiting_requests_are_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)

    async def test(manager: Any, executor: Any) -> None:
        hints = manager.fleet.hints
        tasks = await waiting_behind(manager, executor, 2 * kv_hints._AHEAD)
        waiting = manager.dispatcher.placement.waiting()
        await until(lambda: hints.sent == kv_hints._AHEAD)
        first = [(tuple(r.ledger.prompt), r.options.cache_salt) for r in waiting[: kv_hints._AHEAD]]
        assert told.prompts == first
        hints.send(time.monotonic())
        assert len(told.prompts) == len(first), "they push each other out"
        await finish(executor, tasks)
        await until(lambda: hints.sent == len(told.prompts))
        assert len(set(told.prompts)) == len(told.prompts), "a request was announced twice"
        receipt = manager.dispatcher.placement.receipts[waiting[0].request_id]
        (line,) = [line for line in decision_lines(receipt.to_json()) if "moved up" in line]
        assert line == "    3 pages of its KV moved up on toy/0 while it waited"
        values = {metric.name: metric.value for metric in manager.metrics()}
        assert values["sage_llm_prefetch_hints_total"] == hints.sent
        assert values["sage_llm_prefetched_pages_total"] == 3 * hints.sent

    on_encoders(test, settings=quick(), embedding=0, llm=1)


@pytest.mark.parametrize("answer", [0, Overloaded("busy", retry_after=1.0), UnsupportedFeature("no store")])
def test_an_instance_that_moves_nothing_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, answer: int | Exception
) -> None:
    told = Told(monkeypatch)
    told.answer = answer

    async def test(manager: Any, executor: Any) -> None:
        hints = manager.fleet.hints
        monkeypatch.setattr(kv_hints, "_PATIENCE", 1)
        monkeypatch.setattr(kv_hints, "_AHEAD", 1)
        monkeypatch.setattr(kv_hints, "_QUIET_S", 3600.0)
        tasks = await waiting_behind(manager, executor, 2)
        await until(lambda: told.prompts)
        await until(lambda: isinstance(answer, Overloaded) or hints._quiet_until)
        assert (hints.sent, hints.pages) == (int(answer == 0), 0)
        await finish(executor, tasks)
        assert isinstance(answer, Overloaded) or len(told.prompts) == 1
        assert manager.dispatcher.ends["finished"] == len(tasks)

    on_encoders(test, settings=quick(), embedding=0, llm=1)


def test_engines_without_the_method_are_not_told() -> None:
    async def test(manager: Any, executor: Any) -> None:
        tasks = await waiting_behind(manager, executor, 2)
        await until(lambda: manager.fleet.hints._quiet_until)
        assert manager.fleet.hints.sent == 0
        await finish(executor, tasks)

    on_encoders(test, settings=quick(), embedding=0, llm=1)
