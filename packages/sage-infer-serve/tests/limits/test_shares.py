"""Clients that use much of the event loop wait, if others are there. Time is that of a clock of the test."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from gateway_backend import EchoBackend
from gateway_served import WAIT_S, Served, chat_body
from sage_infer_serve.http.errors import HTTPError
from sage_infer_serve.http.shares import LoopShares, Metered, network_of

CHAT = "/v1/chat/completions"
INVALID = chat_body(guided_choice=[f"choice {i}" for i in range(20_000)])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


@pytest.fixture
def shares(clock: Clock) -> LoopShares:
    return LoopShares(rate=0.1, burst_s=0.1, most_wait_s=5.0, clock=clock)


def ask(shares: LoopShares, client: str, seconds: float, *, is_rejected: bool = False) -> None:
    async def main() -> None:
        reserved = await shares.turn(client)
        shares.spent(client, seconds, reserved=reserved, is_rejected=is_rejected)

    asyncio.run(main())


def test_a_client_gets_its_share_beside_others(shares: LoopShares, clock: Clock, slept: list[float]) -> None:
    ask(shares, "good", 0.001)
    for _ in range(20):
        ask(shares, "bad", 0.02, is_rejected=True)
        clock.now += slept[-1] if slept else 0.0
    elapsed = sum(slept)
    assert elapsed == pytest.approx((20 * 0.0205 - 0.1) / 0.1, rel=0.15), "a tenth of the loop"
    ask(shares, "good", 0.001)
    assert sum(slept) == elapsed, "others do not wait"


def test_a_client_alone_does_not_wait(shares: LoopShares, clock: Clock, slept: list[float]) -> None:
    for _ in range(100):
        ask(shares, "one", 0.02, is_rejected=True)
    assert not slept
    ask(shares, "two", 0.001)
    ask(shares, "one", 0.02, is_rejected=True)
    assert len(slept) == 1
    clock.now += 60
    ask(shares, "one", 0.02, is_rejected=True)
    assert len(slept) == 1, "what was used while it was alone is soon forgotten"


def test_a_stream_in_progress_is_another_client(shares: LoopShares, slept: list[float]) -> None:
    async def main() -> None:
        shares.spent("one", 0.3, reserved=0.0, is_rejected=True)
        reserved = await shares.turn("one", ["one", "one"])
        shares.spent("one", 0.0, reserved=reserved, is_rejected=False)
        assert not slept
        await shares.turn("one", ["one", "two"])
        assert slept

    asyncio.run(main())


def test_cheap_accepted_requests_are_free(shares: LoopShares, slept: list[float]) -> None:
    for number in range(1000):
        ask(shares, f"client {number % 2}", 0.0015)
    assert not slept
    assert not shares._accounts


def test_requests_that_wait_together_follow_each_other(shares: LoopShares, slept: list[float]) -> None:
    async def main() -> None:
        await shares.turn("good")
        shares.spent("bad", 0.1995, reserved=0.0, is_rejected=True)
        for _ in range(8):
            await shares.turn("bad")

    with pytest.raises(HTTPError, match="retry later") as refused:
        asyncio.run(main())
    assert refused.value.status == 429
    assert slept == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 5.0])


def test_accounts_are_bounded(shares: LoopShares, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_infer_serve.http.shares._MOST_CLIENTS", 100)
    for number in range(250):
        shares.spent(f"{number}", 0.01, reserved=0.0, is_rejected=True)
    assert len(shares._accounts) == 100
    clock.now += 3600
    shares.spent("new", 0.01, reserved=0.0, is_rejected=True)
    assert list(shares._accounts) == ["new"]


def test_a_metered_coroutine_is_awaited_as_it_is() -> None:
    async def main() -> None:
        seen: list[str] = []
        turned = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(0)
                seen.append("turned")
                turned.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        metered = Metered(work(), lambda: False)

        async def run() -> None:
            await metered

        task = asyncio.create_task(run())
        await turned.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["turned", "cancelled"]
        assert metered.seconds > 0

        async def fails() -> None:
            await asyncio.sleep(0)
            raise KeyError("x")

        done = Metered(fails(), lambda: True)
        with pytest.raises(KeyError):
            await done
        assert done.seconds == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),
    ],
)
def test_a_client_is_an_address_or_a_network(address: str, network: str) -> None:
    assert network_of(address) == network


def from_address(served: Served, address: str, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*served.address, timeout=WAIT_S, source_address=(address, 0))
    try:
        connection.request("POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()


def test_rejected_requests_of_one_address_do_not_crowd_out_another(
    backend: EchoBackend, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_infer_serve.http.shares._FREE_S", 1000.0)  # accepted requests cost nothing
    served = serve(backend)
    shares = served.gateway.service.shares
    shares.clock = lambda: 0.0  # nothing is forgotten
    shares.burst_s, shares.rate, shares.most_wait_s = 0.0, 0.01, 0.01
    for _ in range(2):
        assert from_address(served, "127.0.0.9", INVALID).status == 400
    assert shares.delayed == 0, "it is alone"
    assert served.chat().status == 200
    for number in range(1, 4):
        assert from_address(served, "127.0.0.9", INVALID).status == 400
        assert shares.delayed == number
        assert served.chat().status == 200
        assert served.get("/health").status == 200
    assert shares.delayed == 3, "the other client does not wait"


def test_without_keys_an_address_is_a_tenant(backend: EchoBackend, served: Served) -> None:
    tenants = []
    for address in ("127.0.0.8", "127.0.0.9"):
        assert from_address(served, address, chat_body()).status == 200
        tenants.append(backend.calls[-1][1]["options"].tenant)
    assert tenants == ["127.0.0.8", "127.0.0.9"]
