"""Client of a replica: connection, calls, streams, health and load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from sage_infer.compat import timeout
from sage_infer.contracts import EngineStats, Health, PromptLike, as_prompts
from sage_infer.errors import EngineDead, UnsupportedFeature
from sage_infer.schemas import (
    CapabilityDescriptor,
    InstanceDescriptor,
    InstanceReport,
    Prompt,
    RequestOptions,
    SamplingParams,
)
from sage_infer.schemas.instance import InstanceState
from sage_infer.sdk import check_claims

from sage_llm.replicas import calls
from sage_llm.replicas.caller import Caller
from sage_llm.replicas.net.gate import Knock
from sage_llm.replicas.protocol import PROTOCOL, Gauges, Hello, Ping

__all__ = ["ReplicaClient"]

PING_S = 0.25
SILENCE_S = 10.0
HELLO_S = 30.0
_QUIET_S = 1.0  # without a frame for so long, the replica is reported as degraded


class ReplicaClient(Caller):
    """Base of the backends behind frames. ``start`` connects, and ``close`` disconnects; the replica continues.

    When the connection is lost, open calls and streams end with ``EngineDead``.

    Args:
        address: ``unix:`` and the path of the replica's socket, or ``tcp://HOST:PORT``.
        token: the replica's token, at a port.
        silence_s: a replica that sends nothing for so many seconds is lost. Routers notice earlier, as no reports
            arrive.
    """

    kind: ClassVar[str]

    def __init__(self, address: str, *, token: str = "", silence_s: float = SILENCE_S) -> None:
        super().__init__(address)
        self._token = token
        self.on_gauges: Callable[[], object] = _nothing
        self.on_lost: Callable[[str], object] = _nothing
        self._silence_s = silence_s
        self._hello: Hello | None = None
        self._greeted: asyncio.Future[Hello] | None = None
        self._gauges: Gauges | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._seq = 0

    # --- life cycle

    async def start(self) -> None:
        """Connect to the replica.

        Raises:
            EngineDead: there is no replica at the address, or it does not speak this protocol.
        """
        if self._hello is not None or self.ended is not None:
            raise EngineDead(f"the client of {self.address} was started before; create a new one")
        loop = asyncio.get_running_loop()
        self._greeted = loop.create_future()
        try:
            async with timeout(HELLO_S):
                await self._open()
                hello = await self._greeted
        except (OSError, TimeoutError) as error:
            self.link.abort("no answer")
            problem = str(error) or f"no answer within {HELLO_S:g} s"
            raise EngineDead(f"cannot connect to the replica at {self.address}: {problem}") from None
        except BaseException:
            self.link.abort("the connection is no longer wanted")
            raise
        if hello.protocol != PROTOCOL or hello.kind != self.kind:
            self.link.abort("another protocol or kind")
            raise EngineDead(
                f"the replica at {self.address} speaks {hello.protocol} of kind {hello.kind}; expected {PROTOCOL} "
                f"of kind {self.kind}"
            )
        self._hello = hello
        self._pinging = loop.create_task(self._ping())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self.address.startswith("unix:"):
            await loop.create_unix_connection(lambda: self.link, self.address.removeprefix("unix:"))
        else:
            where = urlsplit(self.address)
            host, port = where.hostname or "", where.port or 0
            await loop.create_connection(lambda: Knock(self._token, self.link), host, port)

    async def close(self) -> None:
        if self.ended is None:
            self.end(EngineDead(f"the client of {self.address} was closed; create a new one"), by_close=True)
            self.link.close("closed by this client")
        if self._pinging is not None:
            self._pinging.cancel()

    async def health(self) -> Health:
        if self.ended is not None:
            return Health(status="dead", reason=str(self.ended))
        if self._gauges is None:
            return Health(status="starting", reason="start() has not been called")
        silent = self.link.silent_s
        if silent > _QUIET_S and self._gauges.health.status == "ok":
            return Health(status="degraded", reason=f"the replica has sent nothing for {silent:.1f} s")
        return self._gauges.health

    @property
    def state(self) -> InstanceState:
        """State of the replica in its latest gauges; dead after the loss of the connection."""
        assert self._gauges is not None
        return self._gauges.state if self.ended is None else "dead"

    @property
    def health_reason(self) -> str:
        """Reason of the replica's latest health."""
        return "" if self._gauges is None else self._gauges.health.reason

    def stats(self) -> EngineStats:
        """Return the latest gauges; the replica sends them at least three times a second."""
        return EngineStats(running=0, waiting=0) if self._gauges is None else self._gauges.stats

    def get_capability(self) -> CapabilityDescriptor:
        return self.hello().descriptor.capability

    def describe(self) -> InstanceDescriptor:
        self.check_running()
        return self.hello().descriptor

    def report(self) -> InstanceReport:
        """Return the latest report. ``taken_at`` is the replica's time."""
        hello, gauges = self.hello(), self._gauges
        assert gauges is not None
        self._seq += 1
        return InstanceReport(
            instance_id=hello.descriptor.instance_id,
            generation=hello.descriptor.generation,
            seq=self._seq,
            taken_at=gauges.taken_at,
            state=self.state,
            **{name: getattr(gauges.stats, name) for name in _SHARED},
        )

    async def abort(self, request_id: str) -> None:
        if self.ended is None and self._hello is not None:
            await self.call("abort", calls.Abort(request_id), None)

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        result: list[int] = await self.call("tokenize", calls.Tokenize(*as_prompts(prompt)), list[int])
        return result

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        result: str = await self.call("detokenize", calls.Detokenize(tuple(token_ids)), str)
        return result

    # --- for subclasses

    def hello(self) -> Hello:
        if self._hello is None:
            raise EngineDead(f"the client of {self.address} is not connected; call start() first")
        return self._hello

    def check_running(self) -> None:
        """Raise ``EngineDead`` unless the client is connected."""
        self.check_open()
        self.hello()

    def check(
        self,
        *,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        prompts: Sequence[Prompt] = (),
    ) -> None:
        """Refuse what the replica does not claim, and what the frames do not carry."""
        self.check_running()
        capability = self.get_capability()
        check_claims(
            capability.features,
            backend=capability.backend_name,
            params=params,
            options=options,
            prompts=prompts,
        )

    def require(self, feature: str) -> None:
        """Raise ``UnsupportedFeature`` unless the replica claims the feature."""
        self.check_running()
        capability = self.get_capability()
        if not capability.supports(feature):
            raise UnsupportedFeature(
                f"{capability.backend_name} does not claim {feature}; choose a backend that does"
            )

    # --- frames

    def on_hello(self, hello: Hello) -> None:
        self._gauges = hello.gauges
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(hello)

    def on_load(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self.on_gauges()

    def on_end(self, reason: str) -> None:
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(
                EngineDead(f"cannot connect to the replica at {self.address}: {reason}")
            )
        self.on_lost(reason)

    async def _ping(self) -> None:
        """Renew the lease, and notice a replica that is silent."""
        ping = Ping()
        while self.ended is None:
            self.link.tick(PING_S)
            if self.link.silent_s > self._silence_s:
                self.link.abort(f"it has sent nothing for {self._silence_s:g} s")
                return
            self.link.send(ping)
            await asyncio.sleep(PING_S)


_SHARED = (
    "running", "waiting", "waiting_prompt_tokens", "running_context_tokens", "oldest_wait_s", "steps", "step_s",
    "kv_blocks_total", "kv_blocks_free", "kv_blocks_cached", "finished", "prompt_tokens", "output_tokens",
    "prefix_hit_tokens", "extensions",
)  # fmt: skip


def _nothing(*_: object) -> None:
    """Ignore the news."""
