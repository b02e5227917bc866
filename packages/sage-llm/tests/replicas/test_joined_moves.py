"""Streams of joined servers continue on another server, exactly: real engines behind `sage infer serve`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest
from sage_infer_testing.waiting import eventually
from sage_llm.commands.control import ask
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, served

pytestmark = pytest.mark.long

LLM = "smollm2-135m"
TOKENS = 80
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "top_k": 8, "seed": 5},
    {"temperature": 0, "frequency_penalty": 0.7},
    {"temperature": 0, "stop": [" the keeper of the light", "\n\n\n\n"]},
    {"temperature": 0.8, "seed": 9, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0, "guided_regex": "( [a-z]{1,8}){60}"},
]


class Answer:
    """One stream as a client sees it."""

    def __init__(self, number: int) -> None:
        self.text, self.reason, self.error, self.parts = "", None, None, 0
        self.usage: dict[str, int] = {}
        self.ids: list[int] = []
        self.request = {
            "model": LLM, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": TOKENS,
            "ignore_eos": True, **SAMPLING[number % len(SAMPLING)],
            "messages": [{"role": "user", "content": f"A short story about lighthouse number {number}"}],
        }  # fmt: skip

    @property
    def whole(self) -> tuple[Any, ...]:
        usage = self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")
        return self.text, self.reason, usage, self.error

    async def read(self, client: aiohttp.ClientSession, url: str) -> None:
        async with client.post(f"{url}/v1/chat/completions", json=self.request) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    self.take(json.loads(line[6:]))

    def take(self, chunk: dict[str, Any]) -> None:
        self.error = chunk.get("error", self.error)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            self.parts += 1
            self.text += choice["delta"].get("content") or ""
            self.ids += choice.get("token_ids") or ()
            self.reason = choice["finish_reason"] or self.reason


def test_cut_streams_continue_on_another_joined_server(
    smollm2: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server is stopped and returns, then one is killed: each stream equals one of an undisturbed server."""
    pytest.importorskip("sage_infer_hybrid", reason="`sage infer serve` serves models with it")
    folder = tmp_path_factory.mktemp("moves")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))
    config = folder / "behind.yaml"
    options = {"kv_cache_gb": 0.25, "threads": 1}
    # A busy machine may be slow: nothing is refused for that, and requests may move as often as a server seems lost.
    serve = {"models": [{"model": LLM, "options": options}], "target_wait_s": None}
    config.write_text(
        json.dumps({"serve": serve, "llm": {"max_migrations": 100, "instance_wait_s": GUARD_S}})
    )
    command = ("--config", str(config), "infer", "serve")
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            behind = list(pool.map(lambda _: stack.enter_context(served(folder, *command)), range(2)))
        urls = [told["url"] for _, told in behind]
        joins = [flag for url in urls for flag in ("--join", url)]
        _, front = stack.enter_context(served(folder, "--config", str(config), "llm", "serve", *joins))
        pids = {told["url"].removeprefix("http://"): server.pid for server, told in behind}
        asyncio.run(cut(urls[0], front["url"], pids))


async def cut(alone: str, front: str, pids: dict[str, int]) -> None:
    port = int(front.rpartition(":")[2])

    def status() -> dict[str, Any]:
        return ask(port, "status")  # type: ignore[no-any-return]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=GUARD_S)) as client:
        wanted = [Answer(number) for number in range(len(SAMPLING))]
        await asyncio.gather(*(a.read(client, alone) for a in wanted))
        assert all(a.error is None for a in wanted)
        migrations = 0
        for fault in (signal.SIGSTOP, signal.SIGKILL):
            found = [Answer(number) for number in range(len(SAMPLING))]
            reading = [asyncio.create_task(a.read(client, front)) for a in found]
            running = list(zip(found, reading, strict=True))
            await eventually(
                lambda running=running: all(a.parts >= 6 or task.done() for a, task in running),
                "first parts of all streams",
                within_s=GUARD_S,
            )
            rows = status()["replicas"]
            busiest = max(rows, key=lambda row: row["running"])["instance"].partition("@")[2]
            os.kill(pids[busiest], fault)
            await asyncio.gather(*reading)
            assert [a.whole for a in found] == [a.whole for a in wanted]
            requests = status()["requests"]
            assert requests["migrations"] > migrations
            assert requests["failed"] == 0
            migrations = requests["migrations"]
            if fault == signal.SIGSTOP:
                os.kill(pids[busiest], signal.SIGCONT)
                await eventually(
                    lambda: all(row["state"] in ("ready", "probation") for row in status()["replicas"]),
                    "return of the stopped server",
                    within_s=GUARD_S,
                )
