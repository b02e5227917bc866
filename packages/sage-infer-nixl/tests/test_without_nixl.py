"""What works, and what is said, where NIXL is not installed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nixl_other import HAS_NIXL, chunk_of
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest
from sage_infer.plugins import find_plugin, open_transport
from sage_infer.schemas import KVLocation, TransportPlan, TransportSettings, TransportStep
from sage_infer_nixl import NIXLEndpoint, NIXLTransport
from sage_infer_nixl.addresses import parse, reachable
from sage_infer_transport import SharedMemoryEndpoint

ROOM = "nixl://host:5/" + "0a" * 16


@given(st.one_of(st.text(), st.from_regex(r"(nixl|shm|file|tcp)://?[^\s]{0,40}", fullmatch=True)))
def test_addresses_are_parsed_or_refused(uri: str) -> None:
    try:
        parse(uri)
    except InvalidRequest:
        return
    assert uri.startswith(("nixl:", "shm:", "file:")) or uri.lower().startswith(("shm:", "file:"))


@pytest.mark.parametrize(
    "uri",
    [
        "nixl://agent/x", "nixl://host/" + "0" * 32, "nixl://host:70000/" + "0" * 32, "nixl://host:1/" + "0" * 31,
        "nixl://host:1/" + "g" * 32, "nixl://[::1/x", "tcp://host:1/" + "0" * 32, "other://x",
    ],
)  # fmt: skip
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(uri)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (ROOM, ROOM, True),
        (ROOM, "shm://a#64", True),
        (ROOM, "file:///a", True),
        (ROOM, "file:///a#6", False),
        ("shm://a#64", ROOM, True),
        ("file:///a#6", ROOM, True),
        ("shm://a#64", "shm://b#64", True),
        ("shm://a#64", "file:///b#1", False),
        ("tcp://host:1/" + "0" * 32, ROOM, False),
    ],
)
def test_what_can_be_reached(source: str, target: str, expected: bool) -> None:
    ends = [KVLocation(tier="dram", uri=uri) for uri in (source, target)]
    assert reachable(*ends) == expected
    transport = NIXLTransport(settings=TransportSettings())
    assert transport.can_reach(*ends) == expected


@pytest.mark.parametrize("timeout_s", [0, -1, True, "5", 3601])
def test_wrong_limits_are_refused(timeout_s: object) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        NIXLTransport(settings=TransportSettings(), timeout_s=timeout_s)


def test_endpoints_need_a_name_and_a_free_port() -> None:
    with pytest.raises(InvalidRequest, match="advertise"):
        NIXLEndpoint(host="0.0.0.0")
    with pytest.raises(InvalidRequest, match="cannot listen"):
        NIXLEndpoint(host="192.0.2.1")


def test_steps_within_a_host_need_no_nixl(tmp_path: Path) -> None:
    data = b"0123456789" * 1000
    (tmp_path / "source").write_bytes(data)
    here = SharedMemoryEndpoint(capacity_bytes=1 << 20)
    (room,) = here.reserve([chunk_of(data)])
    ends = [
        (KVLocation(tier="ssd", uri=(tmp_path / "source").as_uri()), room),
        (room, KVLocation(tier="ssd", uri=(tmp_path / "target").as_uri())),
    ]

    async def main() -> None:
        transport = NIXLTransport(settings=TransportSettings(max_in_flight=1))
        steps = [
            TransportStep(chunk=chunk_of(data), source=source, target=target, nbytes=len(data))
            for source, target in ends
        ]
        report = await transport.execute(TransportPlan.from_steps("copies", tuple(steps)))
        assert report.ok, report.errors
        await transport.close()

    asyncio.run(main())
    assert (tmp_path / "target").read_bytes() == data
    here.close()


def test_the_transport_is_listed() -> None:
    assert find_plugin("nixl", "transport").name == "nixl"


@pytest.mark.skipif(HAS_NIXL, reason="NIXL is installed")
def test_a_missing_build_is_named() -> None:
    with pytest.raises(BackendUnavailable, match=r"sage-infer-nixl\[cu12\]"):
        open_transport("nixl")
    with pytest.raises(BackendUnavailable, match=r"NIXL is not installed .*sage-infer-nixl\[cu12\]"):
        NIXLEndpoint()
