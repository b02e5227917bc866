"""The commands `sage llm …` against a control plane in this process."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from typing import Any

import plane
import pytest
from plane import read, running_plane
from sage_infer.errors import InvalidRequest, SageInferError
from sage_infer.schemas import SamplingParams, TransportSettings
from sage_infer_serve import GatewaySettings
from sage_llm.commands import operate
from sage_llm.commands.config import LLM
from sage_llm.commands.control import ControlServer, ask, control_path
from sage_llm.commands.methods import methods
from sage_llm.commands.served_models import parse_replicas
from sage_llm.commands.serving import manager_settings, with_room
from sage_llm.commands.tables import status_lines, table_lines, width
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from toy_engine import ToyExecutor, toy_model

PORT = 65_000  # names the socket only; nothing listens there


@pytest.fixture(autouse=True)
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))


def with_socket(test: Callable[[Any], Any]) -> None:
    """Run ``test(command)``; ``command`` runs a function in a thread, as another process would run it."""

    async def main() -> None:
        async with running_plane([toy_model()], ToyExecutor(), plane.ControlPlaneSettings()) as manager:
            (stream,) = await manager.generate(
                "hello", SamplingParams(temperature=0.0, max_tokens=4), request_id="req-1"
            )
            await read(stream)
            server = ControlServer(control_path(PORT), methods(manager, "http://here", 0.0))
            await server.start()
            try:
                await test(lambda function, *args, **options: asyncio.to_thread(function, *args, **options))
            finally:
                await server.close()

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(command: Any) -> None:
        assert stat.S_IMODE(control_path(PORT).stat().st_mode) == 0o600
        await command(operate.status)
        shown = capsys.readouterr().out
        assert "toy/0" in shown
        assert "1 finished" in shown
        await command(operate.status, port=PORT, as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert [row["state"] for row in found["replicas"]] == ["ready", "ready"]
        assert {report["instance_id"] for report in found["instances"]} == {"toy/0", "toy/1"}
        await command(operate.top, count=2, interval=0.1)
        assert capsys.readouterr().out.count("INSTANCE") == 2
        for request in (None, "req-1", "chatcmpl-req-1"):
            await command(operate.explain, request)
            assert "kv-cost" in capsys.readouterr().out
        await command(operate.explain, "req-1", as_json=True)
        assert json.loads(capsys.readouterr().out)["instance"] == "toy/0"
        await command(operate.scale, "toy", "3")
        assert "toy/2" in capsys.readouterr().out
        await command(operate.scale, "toy", "3:4,idle_s=60")
        assert capsys.readouterr().out == "toy: 3:4 replicas, as the load requires\n"
        await command(operate.status)
        assert "scaling toy 3:4: 3 wanted, 3 ready" in capsys.readouterr().out
        await command(operate.scale, "toy", "3")  # else a replica that is drained would be replaced
        capsys.readouterr()
        await command(operate.drain, "toy/0")
        assert "toy/0: 0 requests" in capsys.readouterr().out
        await command(operate.restart, "toy")
        assert capsys.readouterr().out.count("stopped in") == 2
        await command(operate.restart, "toy/1")
        assert capsys.readouterr().out.startswith("toy/1: 0 requests")

    with_socket(test)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(SageInferError, match="sage llm serve"):
        ask(None, "status")
    with pytest.raises(SageInferError, match="at port 65000"):
        ask(PORT, "status")

    async def test(command: Any) -> None:
        for call, wanted in (
            (("drain", {"replica": "toy/9"}), "replicas: toy/0, toy/1"),
            (("restart", {"name": "toy/9"}), "toy/9.*replicas: toy/0, toy/1"),
            (("explain", {"request": "nobody"}), "no receipt"),
            (("scale", {"model": "toy", "replicas": 0}), "at least 1"),
            (("scale", {"model": "toy", "replicas": "4:3"}), "the minimum of 4 replicas is above"),
            (("unknown", {}), "methods: status"),
            (("drain", {"what": 1}), "invalid question"),
        ):
            with pytest.raises(SageInferError, match=wanted):
                await command(ask, PORT, call[0], **call[1])

    with_socket(test)


def test_a_socket_of_a_killed_server_is_replaced() -> None:
    async def main() -> None:
        for _ in range(2):  # the first one leaves its socket, as a killed server does
            server = ControlServer(control_path(PORT), {})
            await server.start()
            assert server._server is not None
            server._server.close()
        await server.close()
        assert not control_path(PORT).exists()

    asyncio.run(main())


def test_tables_count_columns_of_the_terminal() -> None:
    assert width("模型 a") == 6
    lines = table_lines(["NAME", "N"], [["模型", "1"], ["abc", "20"]], right=["N"])
    assert lines == ["NAME   N", "模型   1", "abc   20"]


def test_status_of_a_replica_that_ended() -> None:
    row = {
        "instance": "m/0", "model": "m", "state": "pausing", "reason": "exit -9", "ended_s": 3.2, "restarts": 1,
    }  # fmt: skip
    requests = dict.fromkeys(
        ("open", "waiting", "finished", "failed", "refused", "cancelled", "migrations", "retries"), 0
    )
    status = {"replicas": [row], "requests": requests, "url": "u", "policy": "p", "order": "o"}
    assert "ended 3 s ago: exit -9" in status_lines(status)[1]


def test_replicas_flag() -> None:
    assert parse_replicas(["2", "minilm=3"]) == {"": 2, "minilm": 3}
    for wrong in ("0", "x", "minilm=", "-1"):
        with pytest.raises(InvalidRequest, match="--replicas"):
            parse_replicas([wrong])


def test_settings_from_the_configuration() -> None:
    found = manager_settings(
        LLM(policy="round-robin", max_migrations=1, lost_s=9.0), 5.0, TransportSettings()
    )
    assert (found.policy, found.recovery.migrations, found.health.lost_s) == ("round-robin", 1, 9.0)
    assert found.target_wait_s == 5.0


def test_a_configured_number_of_open_requests_is_kept() -> None:
    assert with_room(GatewaySettings(port=0)).max_open_requests == 16_384
    assert with_room(GatewaySettings(port=0, max_open_requests=100)).max_open_requests == 100
