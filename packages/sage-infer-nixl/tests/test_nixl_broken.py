"""NIXL that does not start, or whose native code fails; installations that are not complete."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nixl_other import HAS_NIXL, NO_NIXL, OtherProcess, chunk_of
from sage_infer.errors import BackendUnavailable
from sage_infer.schemas import KVLocation, TransportPlan, TransportReport, TransportSettings, TransportStep
from sage_infer_nixl import NIXLEndpoint, NIXLTransport, process
from sage_infer_nixl.process import AgentProcess
from sage_infer_transport import SharedMemoryEndpoint

DATA = b"0123456789" * 1000
NEEDS_NIXL = pytest.mark.skipif(not HAS_NIXL, reason=NO_NIXL)


def break_nixl(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Processes that start from now on have this fault."""
    monkeypatch.setenv("SAGE_TEST_NIXL_FAULT", fault)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "faulty"), prepend=":")


def step_from(uri: str, here: SharedMemoryEndpoint) -> TransportStep:
    chunk = chunk_of(DATA)
    (target,) = here.reserve([chunk])
    source = KVLocation(tier="remote", uri=uri)
    return TransportStep(chunk=chunk, source=source, target=target, nbytes=len(DATA))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "no torch",
            r"NIXL is not installed \(No module named 'torch'\); pip install 'sage-infer-nixl\[cu12\]'",
        ),
        ("raises", "NIXL did not start: ValueError: no such plug-in"),
        ("no UCX", "NIXL did not start: RuntimeError: this build of NIXL has no back-end UCX"),
        (
            "crashes",
            "NIXL did not start: the process that runs NIXL was ended by SIGSEGV: a stack of native code",
        ),
    ],
)
def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, fault: str, message: str) -> None:
    break_nixl(monkeypatch, fault)
    with pytest.raises(BackendUnavailable, match=message):
        NIXLEndpoint(capacity_bytes=1024)


def test_a_start_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    break_nixl(monkeypatch, "hangs")
    monkeypatch.setattr(process, "START_S", 0.01)
    monkeypatch.setattr(process, "_END_S", 0.01)
    with pytest.raises(BackendUnavailable, match="NIXL did not start within 0 s"):
        AgentProcess()


def test_a_transport_whose_process_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step fails with the reason, and the next plan starts a process again."""
    break_nixl(monkeypatch, "raises")
    here = SharedMemoryEndpoint(capacity_bytes=1 << 20)
    step = step_from("nixl://127.0.0.1:1/" + "0" * 32, here)

    async def main() -> None:
        transport = NIXLTransport(settings=TransportSettings())
        for fault in ("raises", "no UCX"):
            monkeypatch.setenv("SAGE_TEST_NIXL_FAULT", fault)
            report = await transport.execute(TransportPlan.from_steps("test", (step,)))
            assert report.statuses == ("failed",)
            assert {"raises": "no such plug-in", "no UCX": "back-end UCX"}[fault] in report.errors[0]
        await transport.close()

    asyncio.run(main())
    here.close()


@NEEDS_NIXL
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("never ends", "ended with code 1: given up, and did not end"),
        ("reports an error", "NIXL reports ERR; is the other host reachable through UCX?"),
        ("registers nothing", "NIXL did not register"),
    ],
)
def test_native_code_that_fails_costs_the_step(
    monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    """A transfer that cannot be stopped ends its process: nothing else keeps it from writing to its room later."""
    other, here = OtherProcess(), SharedMemoryEndpoint(capacity_bytes=1 << 20)
    step = step_from(other.publish(DATA).uri, here)

    async def moved(timeout_s: float) -> TransportReport:
        transport = NIXLTransport(settings=TransportSettings(), timeout_s=timeout_s)
        try:
            return await transport.execute(TransportPlan.from_steps("test", (step,)))
        finally:
            await transport.close()

    with monkeypatch.context() as patch:
        break_nixl(patch, fault)
        report = asyncio.run(moved(1.0))
        assert report.statuses == ("failed",)
        assert message in report.errors[0]
    assert asyncio.run(moved(60.0)).ok
    assert bytes(here.open(step.target)) == DATA
    other.close()
    here.close()


@NEEDS_NIXL
def test_an_endpoint_whose_process_does_not_start_again_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, here = NIXLEndpoint(capacity_bytes=1 << 20), SharedMemoryEndpoint(capacity_bytes=1 << 20)
    (source,) = endpoint.publish([chunk_of(DATA)], [memoryview(DATA)])
    step = step_from(source.uri, here)

    async def main() -> None:
        transport = NIXLTransport(settings=TransportSettings())
        plan = TransportPlan.from_steps("test", (step,))
        assert (await transport.execute(plan)).ok
        with monkeypatch.context() as patch:
            break_nixl(patch, "raises")
            endpoint._process.kill("the test wants it")
            report = await transport.execute(plan)
            assert "NIXL did not start: ValueError: no such plug-in" in report.errors[0]
        assert (await transport.execute(plan)).ok
        await transport.close()

    asyncio.run(main())
    endpoint.close()
    here.close()
