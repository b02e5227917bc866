"""KV stores below a real engine and a real model: what another process or an earlier run has computed is used."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer.schemas import RequestOptions, SamplingParams

TEXT = (Path(__file__).parents[1] / "docs" / "contracts.md").read_text("utf-8")[:900]
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LEAST = 96  # tokens of the text in whole blocks, at least
ONCE = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from test_kv_stores import answers
print(json.dumps(asyncio.run(answers(json.loads(sys.argv[2])))))
"""


async def answers(kv_store: Mapping[str, Any] | None, *salts: str) -> list[tuple[list[int], int]]:
    """Greedy tokens and cached tokens of the text in a new engine, once for each salt."""
    found = []
    model = str(add_model(model_specs()["smollm2-135m"]))
    async with open_backend(
        "openvino", model=model, kv_store=kv_store, kv_store_wait_s=60.0, kv_cache_gb=0.25
    ) as backend:
        for salt in salts or ("",):
            options = RequestOptions(cache_salt=salt)
            (stream,) = await backend.generate(TEXT, PARAMS, options=options)
            tokens = [token async for delta in stream for token in delta.token_ids]
            assert stream.usage is not None
            found.append((tokens, stream.usage.cached_tokens))
    return found


@pytest.fixture(scope="module")
def plain() -> list[int]:
    """Tokens without a store."""
    ((tokens, cached),) = asyncio.run(answers(None))
    assert cached == 0
    return tokens


def test_shared_memory_of_another_process(plain: list[int]) -> None:
    name = f"test-{uuid.uuid4().hex}"
    store = {"store": "paged", "name": name, "capacity_blocks": 32, "keep": True}
    try:
        done = subprocess.run(
            [sys.executable, "-c", ONCE, str(Path(__file__).parent), json.dumps(store)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [[plain, 0]]
        ours, tenants = asyncio.run(answers(store, "", "another tenant"))
        assert ours[0] == plain
        assert ours[1] >= LEAST
        assert tenants == (plain, 0)
    finally:
        for file in Path("/dev/shm").glob(f"sage-kv-{name}-*"):
            file.unlink()


def test_disk_after_a_restart(plain: list[int], tmp_path: Path) -> None:
    store = {"store": "ssd", "path": str(tmp_path), "capacity_blocks": 64}
    assert asyncio.run(answers(store)) == [(plain, 0)]
    ((tokens, cached),) = asyncio.run(answers(store))
    assert tokens == plain
    assert cached >= LEAST
    for file in tmp_path.rglob("segment-*.kv"):
        damaged = bytearray(file.read_bytes())
        damaged[10_000] ^= 1
        file.write_bytes(damaged)
    assert asyncio.run(answers(store)) == [(plain, 0)]


def test_a_server_of_several_engines(plain: list[int]) -> None:
    """Memory over a real Valkey or Redis server; one that has other bytes costs reuse only."""
    valkey = pytest.importorskip("valkey", reason="the extra sage-infer-kvstore[valkey] is not installed")
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("no valkey-server or redis-server on this machine (apt-get install valkey-server)")
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/s"
        command = [binary, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                lower = {
                    "store": "valkey",
                    "url": f"unix://{socket}?db=0",
                    "capacity_blocks": 64,
                    "timeout_s": 60.0,
                }
                store = {
                    "store": "tiered", "lower": lower, "lower_tier": "remote", "wait_s": 60.0,
                    "upper": {"capacity_blocks": 8},
                }  # fmt: skip
                client = valkey.Valkey(unix_socket_path=socket)
                while True:
                    assert server.poll() is None, "the server has ended"
                    with contextlib.suppress(valkey.ValkeyError):
                        client.ping()
                        break
                    time.sleep(0.01)
                assert asyncio.run(answers(store)) == [(plain, 0)]
                ((tokens, cached),) = asyncio.run(answers(store))
                assert tokens == plain
                assert cached >= LEAST
                for name in client.keys("*:block:*"):
                    client.setrange(name, 10_000, b"damaged")
                assert asyncio.run(answers(store)) == [(plain, 0)]
            finally:
                server.kill()


def test_the_example_remembers(tmp_path: Path) -> None:
    """Memory over a disk, through two engines."""
    example = Path(__file__).parents[1] / "examples" / "kv_tiers.py"
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    first, _, third, _ = [line for line in done.stdout.splitlines() if " tokens cached" in line]
    assert int(first.split()[0]) == 0
    assert int(third.split()[0]) >= LEAST
    assert first.partition(": ")[2] == third.partition(": ")[2], "the answer has changed"
