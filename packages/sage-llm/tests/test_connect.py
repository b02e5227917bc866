"""Connections to replicas in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest
from sage_infer.contracts import Health, ReplicaExit
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import InstanceReport, ModelDescriptor, ReplicaSpec
from sage_infer.sdk import BackendReplica, BaseInferenceBackend
from sage_llm.replicas.connect import ConnectedReplica, connect

MODEL = ModelDescriptor(model_id="quiet", model_type="llm", model_path="/")
SPEC = ReplicaSpec(replica_id="quiet/0", backend="quiet", model=MODEL)


class Quiet(BaseInferenceBackend):
    """A backend without requests."""

    name = "quiet"
    vocabulary = 2


class QuietWithoutReports(Quiet):
    @property
    def claims(self) -> tuple[str, ...]:
        return ("streaming",)


async def started(kind: type[Quiet] = Quiet) -> tuple[BackendReplica, ConnectedReplica]:
    backend = kind(MODEL)
    await backend.start()
    handle = BackendReplica(SPEC, backend)
    return handle, await connect(handle, interval_s=0.001)


async def reports_of(replica: ConnectedReplica, count: int) -> list[InstanceReport]:
    found: list[InstanceReport] = []
    enough = asyncio.Event()

    def take(report: InstanceReport) -> None:
        found.append(report)
        if len(found) >= count:
            enough.set()

    replica.on_report(take)
    await enough.wait()
    return found


@pytest.mark.parametrize("kind", [Quiet, QuietWithoutReports])
def test_reports_carry_the_identity_of_the_replica(kind: type[Quiet]) -> None:
    async def main() -> None:
        handle, replica = await started(kind)
        found = await reports_of(replica, 3)
        assert {(r.instance_id, r.generation) for r in found} == {("quiet/0", handle.descriptor.generation)}
        assert [r.seq for r in found] == sorted({r.seq for r in found})
        assert found[-1].state == "ready"
        late: list[InstanceReport] = []
        replica.on_report(late.append)
        assert late, "a late callback did not get the latest report"
        await replica.close()
        await replica.close()
        await handle.stop()

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["stop", "died"])
def test_the_end_of_a_replica_is_told_once(ending: str) -> None:
    async def main() -> None:
        handle, replica = await started()
        lost: list[str] = []
        told = asyncio.Event()
        replica.on_lost(lambda reason: (lost.append(reason), told.set()))
        if ending == "stop":
            await handle.stop()
        else:
            await handle.backend.close()
        await told.wait()
        late: list[str] = []
        replica.on_lost(late.append)
        assert late == lost
        assert len(lost) == 1
        assert lost[0]
        await replica.close()

    asyncio.run(main())


def test_a_closed_connection_tells_nothing() -> None:
    async def main() -> None:
        handle, replica = await started()
        lost: list[str] = []
        replica.on_lost(lost.append)
        await replica.close()
        await handle.stop()
        assert (await handle.wait()).reason == "stopped"
        assert lost == []

    asyncio.run(main())


def test_an_address_of_an_unknown_scheme_is_refused() -> None:
    class Far:
        def __init__(self, inner: BackendReplica) -> None:
            self.spec, self.backend = inner.spec, None
            self.descriptor = attrs.evolve(inner.descriptor, addresses=("carrier-pigeon:loft",))

        async def wait(self) -> ReplicaExit:
            return await asyncio.Event().wait()  # type: ignore[return-value]

    async def main() -> None:
        backend: Any = Quiet(MODEL)
        with pytest.raises(UnsupportedFeature, match="carrier-pigeon:loft"):
            await connect(Far(BackendReplica(SPEC, backend)))  # type: ignore[arg-type]
        assert (await backend.health()) == Health(status="starting", reason="the model is not loaded yet")

    asyncio.run(main())
