"""NIXL's agent: its memory, the agents that it knows, and transfers between them. Nothing else imports NIXL."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from sage_infer_transport.execution import Failed

from sage_infer_nixl.control import Place

__all__ = ["Agent"]

_BACKEND = "UCX"
_MEMORY = "DRAM"
_GRACE_S = 2.0  # for a transfer that was given up to end
_THREAD_WAITS_US = 10_000
_PAUSES_S = 0.00005, 0.002  # shortest and longest pause between two looks at a transfer


class Agent:
    """One agent with the back-end UCX. Safe to use from several threads: NIXL is called by one at a time.

    Attributes:
        name: its name, which no other agent has.

    Raises:
        ImportError: NIXL is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        api = _api()
        self._errors = _errors(api)
        self.name = f"sage-{secrets.token_hex(8)}"
        self._agent = _new_agent(api, self.name)
        if _BACKEND not in self._agent.backends:
            raise RuntimeError(f"this build of NIXL has no back-end {_BACKEND}")
        self._registered: dict[int, Any] = {}
        self._peers: dict[str, str] = {}  # agents by the endpoint's address
        self._lock = threading.Lock()

    def metadata(self) -> bytes:
        """What other agents need to reach the memory that is registered now."""
        with self._lock:
            return bytes(self._agent.get_agent_metadata())

    def register(self, memory: mmap.mmap) -> int:
        """Register memory for transfers; returns its address. It must stay mapped until ``forget``."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with self._lock:
            found = self._agent.register_memory([(address, len(memory), 0, "")], _MEMORY)
            if found is None:
                raise Failed(f"NIXL did not register {len(memory)} bytes of memory")
            self._registered[address] = found
        return address

    def forget(self, address: int) -> None:
        """Undo ``register``."""
        with self._lock:
            self._agent.deregister_memory(self._registered.pop(address))

    def transfer(
        self,
        operation: Literal["READ", "WRITE"],
        address: int,
        place: Place,
        *,
        endpoint: str,
        check: Callable[[], None],
    ) -> None:
        """Move ``place.nbytes`` bytes between registered memory here and a place of another agent.

        Returns, or raises, when nothing is written to either side any more. The process ends if that cannot be reached.

        Args:
            endpoint: the endpoint that answers for the place; it replaces its agent when that has died.
            check: called while the transfer runs; what it raises ends the transfer.

        Raises:
            Failed: NIXL failed.
        """
        if place.nbytes == 0:
            return
        try:
            with self._lock:
                peer = self._peer(place, endpoint)
                ours = self._agent.get_xfer_descs([(address, place.nbytes, 0)], _MEMORY)
                theirs = self._agent.get_xfer_descs([(place.address, place.nbytes, 0)], _MEMORY)
                handle = self._agent.initialize_xfer(operation, ours, theirs, peer)
                state = self._agent.transfer(handle)
            try:
                state = self._awaited(handle, state, check)
            finally:
                self._release(handle)
        except self._errors as error:  # among them that the other agent has gone
            self._drop(endpoint)
            raise Failed(f"NIXL: {type(error).__name__} {error}".rstrip()) from None
        if state != "DONE":
            self._drop(endpoint)
            raise Failed(f"NIXL reports {state}; is the other host reachable through UCX?")

    def _awaited(self, handle: Any, state: str, check: Callable[[], None]) -> str:
        """Wait for a transfer to end. One that is given up is awaited, too: UCX may write after it was cancelled."""
        pause, longest = _PAUSES_S
        given_up: Failed | None = None
        end = 0.0
        while state == "PROC":
            if given_up is None:
                try:
                    check()
                except Failed as error:
                    given_up, end = error, time.monotonic() + _GRACE_S
            elif time.monotonic() > end:
                print(f"given up, and did not end: {given_up}", file=sys.stderr, flush=True)
                os._exit(1)  # nothing else stops it; before its room is given to another chunk
            time.sleep(pause)
            pause = min(2 * pause, longest)
            with self._lock:
                state = self._agent.check_xfer_state(handle)
        if given_up is not None:
            raise given_up
        return state

    def _release(self, handle: Any) -> None:
        with self._lock, contextlib.suppress(*self._errors):
            self._agent.release_xfer_handle(handle)

    def _peer(self, place: Place, endpoint: str) -> str:
        """The agent of a place; the one that its endpoint had before is forgotten."""
        known = self._peers.get(endpoint)
        if known != place.agent:
            if known is not None:
                self._forget_peer(known)
            self._peers[endpoint] = _text(self._agent.add_remote_agent(place.metadata))
        return self._peers[endpoint]

    def _drop(self, endpoint: str) -> None:
        with self._lock:
            known = self._peers.pop(endpoint, None)
            if known is not None:
                self._forget_peer(known)

    def _forget_peer(self, name: str) -> None:
        with contextlib.suppress(*self._errors):  # NIXL has dropped it already
            self._agent.remove_remote_agent(name)


def _api() -> Any:
    """NIXL's Python interface. The distribution ``nixl`` chooses the build for the CUDA that torch was built for.

    Raises:
        ImportError: no build is installed.
    """
    for build in ("nixl", "nixl_cu13", "nixl_cu12", "nixl_rocm"):
        try:
            return importlib.import_module(f"{build}._api")
        except ModuleNotFoundError as error:
            if error.name != build:
                raise
    raise ModuleNotFoundError("none of nixl_cu12, nixl_cu13 and nixl_rocm can be imported")


def _new_agent(api: Any, name: str) -> Any:
    """An agent whose thread waits for the network. With the delay that ``nixl_agent`` sets, it keeps a core busy."""
    make = api.nixlBind.nixlAgent

    def waiting(name: str, config: Any) -> Any:
        config.pthrDelay = _THREAD_WAITS_US
        return make(name, config)

    api.nixlBind.nixlAgent = waiting
    try:
        return api.nixl_agent(name, api.nixl_agent_config(backends=[_BACKEND]))
    finally:
        api.nixlBind.nixlAgent = make


def _errors(api: Any) -> tuple[type[Exception], ...]:
    """The classes of NIXL's errors, which have no base of their own."""
    found = (value for name, value in vars(api.nixlBind).items() if name.endswith("Error"))
    return (RuntimeError, *(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)))


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
