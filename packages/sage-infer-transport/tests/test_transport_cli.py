"""``sage infer transport …`` as a user runs it, and segments of processes that died."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sage_infer.plugins import open_transport
from sage_infer.schemas import KVCacheSchema, KVChunk, KVLocation, TransportPlan, TransportStep
from sage_infer.sdk import checksum
from sage_infer_testing import PluginContract
from sage_infer_transport import SharedMemoryEndpoint
from sage_infer_transport.picture import bar

SAGE = [sys.executable, "-m", "sage_infer.cli.main", "infer"]
SHARED = Path("/dev/shm")


def sage(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SAGE, *map(str, arguments)], capture_output=True, text=True, check=False)


class TestPlugin(PluginContract):
    module = "sage_infer_transport.plugin"


def test_probe_measures_each_preset_and_recommends_one(tmp_path: Path) -> None:
    done = sage(
        "transport",
        "probe",
        "--megabytes",
        2,
        "--rounds",
        2,
        "--folder",
        tmp_path,
        "--plot",
        tmp_path / "p.svg",
    )
    assert done.returncode == 0, done.stderr
    for link in ("shm", "file", "tcp"):
        assert done.stdout.count(f"\n{link}") == 3
    assert done.stdout.count("← recommended") == 3
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["p.svg"], "files of the probe are left"


def test_probe_prints_json() -> None:
    done = sage("transport", "probe", "--link", "shm", "--megabytes", 1, "--rounds", 3, "--json")
    found = json.loads(done.stdout)
    assert set(found["recommended"]) == {"shm"}
    assert [m["preset"] for m in found["measurements"]] == ["high-bw", "low-latency", "low-cost"]
    assert all(len(m["gbs"]) == 3 and min(m["gbs"]) > 0 for m in found["measurements"])


def test_probe_measures_the_link_to_a_listening_host() -> None:
    listening = subprocess.Popen(
        [*SAGE, "transport", "listen", "--megabytes", "2"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert listening.stdout is not None
        command = shlex.split(listening.stdout.readline())
        assert command[:4] == ["sage", "infer", "transport", "probe"]
        done = sage(*command[2:], "--rounds", "2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\nremote host") == 3
    finally:
        listening.send_signal(signal.SIGTERM)
        assert listening.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--link", "nope"), "neither one of shm, file, tcp nor an address"),
        (("--link", f"tcp://127.0.0.1:1/{'0' * 32}#10-0"), "no progress"),
        (("--plot", "p.png"), "must end in .svg"),
        (("--link", "file", "--folder", "/nowhere"), "cannot write to /nowhere"),
        (("--link", "shm", "--megabytes", "1", "--plot", "/nowhere/p.svg"), "cannot write /nowhere/p.svg"),
    ],
)
def test_probe_says_what_was_expected(arguments: tuple[str, ...], message: str) -> None:
    done = sage("transport", "probe", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_bars_are_in_eighths() -> None:
    assert (bar(1, 4), bar(0.5, 4), bar(1 / 32, 4), bar(0, 4)) == ("████", "██", "▏", "")


CHILD = """
import sys
from sage_infer_transport import SharedMemoryEndpoint
endpoint = SharedMemoryEndpoint(capacity_bytes=1000)
print(endpoint.name, flush=True)
sys.stdin.read()
"""


def test_the_segment_of_a_killed_process_is_removed() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    SharedMemoryEndpoint(capacity_bytes=1000).close()
    assert (SHARED / name).exists(), "the segment of a process that runs was removed"
    child.kill()
    child.communicate()
    SharedMemoryEndpoint(capacity_bytes=1000).close()
    assert not (SHARED / name).exists()


async def _move(chunk: KVChunk, source: KVLocation, target: KVLocation) -> None:
    step = TransportStep(chunk=chunk, source=source, target=target, nbytes=chunk.nbytes)
    transport = open_transport("local")
    report = await transport.execute(TransportPlan.from_steps("p", (step,)))
    await transport.close()
    assert report.ok, report.errors


def test_the_configuration_opens_a_transport(tmp_path: Path) -> None:
    """``open_transport`` by name, from a file into shared memory and back into a file."""
    import asyncio

    data = os.urandom(300_000)
    schema = KVCacheSchema(
        dtype="int8", page_size=300_000, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
    )
    chunk = KVChunk(
        chunk_id="0" * 32, request_id="r", layer_start=0, layer_end=1, token_start=0, token_end=1,
        kv_schema=schema, nbytes=len(data), checksum=checksum(data),
    )  # fmt: skip
    (tmp_path / "in.kv").write_bytes(data)
    here, there = (KVLocation(tier="ssd", uri=(tmp_path / name).as_uri()) for name in ("in.kv", "out.kv"))
    endpoint = SharedMemoryEndpoint(capacity_bytes=1 << 20)
    try:
        (room,) = endpoint.reserve([chunk])
        asyncio.run(_move(chunk, here, room))
        assert bytes(endpoint.open(room)) == data
        asyncio.run(_move(chunk, room, there))
    finally:
        endpoint.close()
    assert (tmp_path / "out.kv").read_bytes() == data
