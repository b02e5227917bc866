"""`sage llm serve --kv-transport NAME` with the transport of any installed wheel; the engines are the kit's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from kit_reference.llm import ReferenceLLM
from sage_infer.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from sage_infer.plugins import open_endpoint
from sage_infer.schemas import SamplingParams, TransportSettings
from sage_llm.commands.pd_flags import check_transport
from sage_llm.replicas.hand_over import HandOverRoom
from served_command import GUARD_S, SAGE, served
from served_toys import PIGEONS

pytestmark = pytest.mark.usefixtures("toys")

PD = ["--pd", "1:1", "--policy", "pd:min_tokens=1,delay_s=1000", "--kv-transport"]


@pytest.fixture
def pigeons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PIGEONS, str(tmp_path / "pigeons"))
    return tmp_path / "pigeons"


def noted(pigeons: Path, line: str) -> int:
    return pigeons.read_text().splitlines().count(line)


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=GUARD_S) as answer:
        return answer.read().decode()


def complete(url: str) -> str:
    body = {"model": "smollm2-135m", "prompt": "the quick brown fox", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
        return text


def test_a_third_wheels_transport_moves_kv(smollm2: str, tmp_path: Path, pigeons: Path) -> None:
    """By its name, with its own endpoints, and with the settings that the flag has besides."""
    words = ["--backend", "reference", "-m", "smollm2-135m"]
    with served(tmp_path, "llm", "serve", *words, *PD, "pigeon,preset=low-cost") as (_, ready):
        apart = complete(ready["url"])
        assert 'outcome="done"} 1' in metrics(ready["url"])
        assert noted(pigeons, "opened") == 2
        (moved,) = [line for line in pigeons.read_text().splitlines() if line.startswith("moved")]
        assert not moved.startswith("moved 0 ")
        assert moved.endswith("up to 2 chunks simultaneously")
    # Two, so that they run in processes of their own: this engine prints to its standard output.
    with served(tmp_path, "llm", "serve", *words, "--replicas", "2") as (_, ready):
        assert complete(ready["url"]) == apart


def test_what_replicas_cannot_use_is_refused() -> None:
    done = subprocess.run(
        [*SAGE, "llm", "serve", "--backend", "reference", *PD, "paper"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == InvalidRequest.exit_code
    assert "the transport 'paper' has no endpoint for KV of replicas; transports: " in done.stderr
    with pytest.raises(UnsupportedFeature, match="transport 'paper' of served has no endpoint"):
        open_endpoint("paper")
    with pytest.raises(InvalidRequest, match=r"transports: .*pigeon, .*store"):
        check_transport("owl")


def test_an_endpoint_that_does_not_open_is_tried_again(pigeons: Path) -> None:
    async def main() -> None:
        engine, other = ReferenceLLM(), ReferenceLLM()
        await engine.start()
        await other.start()
        room, there = HandOverRoom(engine), HandOverRoom(other)
        result = await engine.prefill("a prompt", request_id="r", params=SamplingParams(max_tokens=2))
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="the pigeons are ill"):
                await room.publish(result.states[0], "ill")
        assert noted(pigeons, "not opened") == 2
        publishing = asyncio.ensure_future(room.publish(result.states[0], "pigeon"))
        await asyncio.sleep(0)  # it waits for the endpoint now, and gives up
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        state = await room.publish(result.states[0], "pigeon")
        assert noted(pigeons, "opened") == 1
        _, nbytes = await there.fetch(state, "pigeon", TransportSettings.from_preset("high-bw"))
        assert nbytes == sum(chunk.nbytes for chunk in state.chunks) > 0
        for closing in (room, there, room):
            await closing.close()
        assert (noted(pigeons, "opened"), noted(pigeons, "closed")) == (2, 2)
        await engine.close()
        await other.close()

    asyncio.run(main())
