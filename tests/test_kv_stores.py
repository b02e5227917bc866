"""KV stores below a real engine and a real model: what another process or an earlier run has computed is used."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
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
