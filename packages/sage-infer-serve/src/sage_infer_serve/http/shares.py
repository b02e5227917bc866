"""Fair shares of the event loop: a client whose requests cost much of it waits while others are there.

Decoding and validating a request holds the event loop and the GIL, for milliseconds if the request is large. A client
that repeats such requests, or requests that are rejected, would take most of the loop, and the engine's thread would
wait for the GIL in each step.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any

from attrs import define, field

from sage_infer_serve.http.errors import limited

__all__ = ["LoopShares", "Metered", "network_of"]

_FREE_S = 0.002  # of each accepted request
_CONNECTION_S = 0.0005  # of each rejected request, beside the time of its handler
_RECENT_S = 10.0  # since the last request of another client, after which the loop is not shared
_WEIGHT = 0.5  # of the newest request in the expected cost of the next one
_MOST_CLIENTS = 4096


class Metered:
    """Awaits a coroutine and measures the CPU time of its steps in the event loop, until ``is_done`` is true.

    Attributes:
        seconds: CPU time so far.
    """

    __slots__ = ("_coroutine", "_is_done", "seconds")

    def __init__(self, coroutine: Coroutine[Any, Any, None], is_done: Callable[[], object]) -> None:
        self._coroutine, self._is_done = coroutine, is_done
        self.seconds = 0.0

    def __await__(self) -> Generator[Any, Any, None]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        try:
            while True:
                if self._is_done():
                    awaited = step(value)
                else:
                    began = time.thread_time()
                    try:
                        awaited = step(value)
                    finally:
                        self.seconds += time.thread_time() - began
                try:
                    value, step = (yield awaited), self._coroutine.send
                except BaseException as error:
                    value, step = error, self._coroutine.throw
        except StopIteration:
            pass
        finally:
            self._coroutine.close()


@define(eq=False)
class _Account:
    """``level`` in seconds of the event loop that were used, at the time ``at``; ``expected`` for the next request."""

    at: float
    level: float = 0.0
    expected: float = 0.0


@define(eq=False)
class LoopShares:
    """Paces the requests of clients by the event-loop time that earlier ones took, if there are other clients.

    Accepted requests that are prepared in two milliseconds cost nothing.

    Attributes:
        rate: share of the event loop for one client's expensive and rejected requests.
        burst_s: seconds of the event loop that a client may use without waiting.
        most_wait_s: maximum wait; a request that would wait longer is refused after it.
        delayed: number of requests that had to wait.
    """

    rate: float = 0.1
    burst_s: float = 0.1
    most_wait_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    delayed: int = 0
    _accounts: dict[str, _Account] = field(factory=dict, init=False)
    _last: tuple[str, float] = field(default=("", -_RECENT_S), init=False)
    _other_at: float = field(default=-_RECENT_S, init=False)  # last request of any client but the last one

    async def turn(self, client: str, open_clients: Iterable[str] = ()) -> float:
        """Wait until the client's next request may be prepared; returns the seconds charged for it in advance.

        ``open_clients`` are those with requests in progress.

        Raises:
            HTTPError: it would wait for too long (429).
        """
        now = self.clock()
        is_shared = self._seen(client, now)
        account = self._accounts.get(client)
        if account is None:
            return 0.0
        self._drain(account, now)
        is_shared = is_shared or any(other != client for other in open_clients)
        wait = (account.level - self.burst_s) / self.rate if is_shared else 0.0
        self.delayed += wait > 0
        if wait > self.most_wait_s:
            await asyncio.sleep(self.most_wait_s)
            message = "too many expensive or invalid requests from this client; retry later"
            raise limited(message, wait, code="overloaded")
        reserved = account.expected
        account.level += reserved
        if wait > 0:
            await asyncio.sleep(wait)
        return reserved

    def spent(self, client: str, seconds: float, *, reserved: float, is_rejected: bool) -> None:
        """Charge a request that took ``seconds``, in place of what was ``reserved``."""
        cost = seconds + _CONNECTION_S if is_rejected else max(0.0, seconds - _FREE_S)
        account = self._accounts.get(client)
        if account is None:
            if not cost:
                return
            self._make_room()
            account = self._accounts[client] = _Account(self.clock())
        self._drain(account, self.clock())
        account.expected += _WEIGHT * (cost - account.expected)
        # Bounded, so that a client is not paced for long because it was alone before.
        most = self.burst_s + self.rate * self.most_wait_s
        account.level = min(most, max(0.0, account.level + cost - reserved))

    def _seen(self, client: str, now: float) -> bool:
        """Whether others were there lately."""
        last, at = self._last
        if last != client:
            self._other_at = at
        self._last = client, now
        return now - self._other_at < _RECENT_S

    def _drain(self, account: _Account, now: float) -> None:
        account.level = max(0.0, account.level - (now - account.at) * self.rate)
        account.at = now

    def _make_room(self) -> None:
        if len(self._accounts) < _MOST_CLIENTS:
            return
        now = self.clock()
        for name, account in list(self._accounts.items()):
            self._drain(account, now)
            if not account.level:
                del self._accounts[name]
        while len(self._accounts) >= _MOST_CLIENTS:
            del self._accounts[next(iter(self._accounts))]


def network_of(address: str) -> str:
    """The address, or the /64 network of an IPv6 address, which is the smallest that one client is given."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
