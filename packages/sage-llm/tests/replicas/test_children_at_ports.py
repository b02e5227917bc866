"""Replicas at ports in child processes: what executors on a cluster do, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import attrs
import pytest
from sage_infer.errors import EngineDead
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_llm.replicas.adoption import fits
from sage_llm.replicas.connect import connect
from sage_llm.replicas.elsewhere import ElsewhereExecutor
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.replicas.net.server import NETWORK_SERVER
from served_toys import llm_spec

pytestmark = pytest.mark.usefixtures("toys")


def spec(token: str, replica_id: str = "reference/0", **changes: Any) -> ReplicaSpec:
    return llm_spec(replica_id, server=NETWORK_SERVER, environment={TOKEN_VARIABLE: token}, **changes)


async def tokens_of(handle: Any) -> list[int]:
    replica = await connect(handle)
    try:
        (stream,) = await replica.backend.generate(
            "Once", SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        )
        return [token async for delta in stream for token in delta.token_ids]
    finally:
        await replica.close()


def test_a_child_at_a_port() -> None:
    async def main() -> None:
        executor = ElsewhereExecutor(LocalExecutor())
        try:
            handle: Any = await executor.start(spec("a"))
            other: Any = await executor.start(spec("b", "reference/1"))
            assert all(h.descriptor.addresses[0].startswith("tcp://127.0.0.1:") for h in (handle, other))
            assert await tokens_of(handle) == await tokens_of(other)
            stranger = attrs.evolve(handle.spec, environment={TOKEN_VARIABLE: "b"})
            handle.spec, own = stranger, handle.spec
            with pytest.raises(EngineDead, match="refused the token"):
                await connect(handle)
            handle.spec = own
            os.kill(handle.pid, signal.SIGKILL)
            assert (await handle.wait()).code == -signal.SIGKILL
            with pytest.raises(EngineDead, match="cannot connect"):
                await connect(handle)
            assert await executor.adopt() == []
        finally:
            await executor.close()
        assert (await other.wait()).reason == "stopped"

    asyncio.run(main())


def test_a_replica_with_another_token_fits() -> None:
    """A control plane draws a token at each start, and adopted replicas keep theirs."""

    @attrs.define
    class Handle:
        spec: ReplicaSpec
        descriptor: Any

    @attrs.define
    class Descriptor:
        generation: int = 1

    model = attrs.evolve(llm_spec().model, model_path="/no/such/file")
    handle: Any = Handle(spec("an old one", model=model), Descriptor())
    assert fits(handle, spec("a new one", model=model))
    assert not fits(handle, spec("a new one", model=model, options={"pause_s": 1.0}))
    assert not fits(handle, llm_spec(server=NETWORK_SERVER, environment={"A": "b"}, model=model))
