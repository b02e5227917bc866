"""``sage infer bench`` as a process, against a real server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import bench_server as server
import pytest
from attrs import frozen
from bench_server import Asked, ScriptedServer, serving
from sage_infer_serve.bench.progress import Progress, shown


@frozen
class Done:
    code: int
    out: str
    err: str


async def start(*arguments: str) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sage_infer.cli.main", "infer", "bench", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process) -> Done:
    out, err = await asyncio.wait_for(process.communicate(), 600)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def run(*arguments: str, reply: server.Reply | None = None, **settings: Any) -> tuple[Done, ScriptedServer]:
    async def main() -> tuple[Done, ScriptedServer]:
        async with serving(reply or server.good_stream(), **settings) as scripted:
            return await finish(await start("--url", scripted.url, *arguments)), scripted

    return asyncio.run(main())


def test_a_closed_loop_with_its_files(tmp_path: Path) -> None:
    data_file, plot_file = tmp_path / "run.json", tmp_path / "run.svg"
    done, scripted = run("-c", "3", "-n", "12", "--json", str(data_file), "--plot", str(plot_file))
    assert done.code == 0, done.err
    assert len(scripted.generations) == 4 + 12  # the warm-up is asked for, and not in the figures
    lines = done.out.splitlines()
    assert lines[0].startswith("toy, chat, streamed: concurrency 3, 12 answers in ")
    assert lines[1] == "per request: 11 prompt tokens, 3 output tokens"
    assert [line[:20].strip() for line in lines[3:8]] == [
        "MILLISECONDS", "time to first token", "between chunks", "per output token", "whole request",
    ]  # fmt: skip
    assert "requests/s" in lines[-1]
    assert done.err == "warming up …\nmeasuring …\n"
    data = json.loads(data_file.read_text("utf-8"))
    assert (data["report"]["answered"], data["report"]["failed"]) == (12, 0)
    assert data["settings"]["concurrency"] == 3
    assert len(data["samples"]) == 12
    assert {sample["cached_tokens"] for sample in data["samples"]} == {
        None
    }  # this server does not count them
    assert ET.fromstring(plot_file.read_text("utf-8")).tag.endswith("svg")


def test_an_open_loop_that_prints_json() -> None:
    done, _ = run("--rate", "500", "-n", "10", "--json", "-", "--warmup", "0")
    data = json.loads(done.out)
    assert (data["settings"]["rate"], data["report"]["answered"]) == (500.0, 10)
    assert "500 a second (Poisson)" in done.err  # people's table is beside it


def test_embeddings() -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.answer_json(writer, {"data": [{}] * 2, "usage": {"prompt_tokens": 200}})

    done, scripted = run("--endpoint", "embeddings", "--batch", "2", "-n", "6", reply=reply)
    assert done.code == 0, done.err
    assert "texts/s" in done.out
    assert "first token" not in done.out
    assert {len(asked.data["input"]) for asked in scripted.generations} == {2}


def test_failed_requests_are_shown_and_fail_the_command_only_if_all_did() -> None:
    turn = 0

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        busy = server.refuse("429 Too Many Requests", "busy")
        await (busy if turn % 2 else server.good_stream())(asked, writer)

    done, _ = run("-n", "8", "-c", "1", reply=reply)
    assert done.code == 0
    assert "4 of 8 requests failed (not in other figures)" in done.err
    assert "4 × HTTP 429: busy" in done.err
    done, _ = run("-n", "5", "--warmup", "0", reply=server.refuse("500 Oops", "broken"))
    assert done.code == 1
    assert "5 × HTTP 500: broken" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-c", "2", "-r", "3"], 2, "use one of them"),
        (["-r", "0"], 2, "--rate must be a number greater than 0, got 0"),
        (["--duration", "nan"], 2, "--duration"),
        (["--endpoint", "chats"], 2, "chat, completions, embeddings; got 'chats'"),
        (["--url", "ftp://x"], 2, "--url must be like"),
        (["--json", "/nowhere/at/all.json"], 2, "folder /nowhere/at does not exist"),
        (["--url", "http://127.0.0.1:1"], 3, "no server answers"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], code: int, message: str) -> None:
    done, _ = run(*arguments)
    assert done.code == code
    (line,) = done.err.splitlines()
    assert line.startswith("error: " if "--json" not in arguments else "{")
    assert message in line


def test_an_unknown_model_is_said_before_anything_is_measured() -> None:
    done, scripted = run("-m", "other", reply=server.refuse("404 Not Found", "the model does not exist"))
    assert done.code == 3
    assert "the model does not exist; check --model (the server has the models toy)" in done.err
    assert len(scripted.generations) == 4


def test_an_interruption_prints_the_results_so_far() -> None:
    async def main() -> Done:
        stuck = asyncio.Event()

        async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
            if len(scripted.generations) > 6:
                stuck.set()
                await asyncio.Event().wait()
            await server.good_stream()(asked, writer)

        async with serving(reply) as scripted:
            process = await start("--url", scripted.url, "-c", "1", "-n", "100", "--warmup", "1")
            await asyncio.wait_for(stuck.wait(), 300)
            process.send_signal(signal.SIGINT)
            return await finish(process)

    done = asyncio.run(main())
    assert done.code == 130
    assert "5 answers" in done.out
    assert "interrupted" in done.err


# --- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    async def main() -> str:
        out, progress = Terminal(), Progress(10, None)
        progress.count(failed=False)
        progress.count(failed=True)
        async with shown("measuring", progress, out):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return out.getvalue()

    text = asyncio.run(main())
    assert "measuring  █████░░░" in text
    assert re.search(r" 20%  2 of 10 requests, \d+ s, 1 failed", text)
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")


def test_progress_towards_a_time() -> None:
    progress = Progress(None, 1e-9)
    assert "100%  0 requests" in progress.line()
