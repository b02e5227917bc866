"""Runs a gateway on uvicorn with graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from attrs import evolve
from sage_infer.contracts import HybridInferenceBackend
from sage_infer.errors import ConfigError

from sage_infer_serve.app import Gateway
from sage_infer_serve.http.auth import APIKey, read_keys
from sage_infer_serve.http.connections import ConnectionLimits
from sage_infer_serve.http.origins import is_loopback
from sage_infer_serve.http.protocol import limited_protocol
from sage_infer_serve.service import Service
from sage_infer_serve.settings import GatewaySettings

__all__ = [
    "RunningGateway",
    "check_settings",
    "listen",
    "new_loop",
    "reserve",
    "run_until_signal",
    "running_gateway",
]

log = logging.getLogger("sage_infer.serve")

_KEEP_ALIVE_S = 75
_LAST_WORDS_S = 2.0  # for streams to send a final event before uvicorn cancels them
_OWN_FILES = 128  # file descriptors reserved for other uses
_UNSENT = 128 * 1024  # bytes of a connection that the kernel holds unsent
_SWITCH_S = 0.001  # for which a thread holds the GIL while others wait for it


def check_settings(settings: GatewaySettings) -> list[APIKey]:
    """The keys from the settings.

    Raises:
        ConfigError: the server would be reachable without keys, or the keys cannot be read.
    """
    keys = [] if settings.keys_file is None else read_keys(Path(settings.keys_file).expanduser())
    if settings.keys_file is not None and not keys:
        raise ConfigError(f"{settings.keys_file} has no API keys; create one with `sage infer key add NAME`")
    if not keys and not settings.insecure and not is_loopback(settings.host):
        raise ConfigError(
            f"host {settings.host} can be reached by others, but no API keys are configured; run `sage infer key "
            "add NAME`, or use --insecure to allow access without keys"
        )
    return keys


class RunningGateway:
    """A gateway listening at ``url``."""

    def __init__(
        self, gateway: Gateway, server: uvicorn.Server, listener: socket.socket, limits: ConnectionLimits
    ) -> None:
        self.gateway, self.limits = gateway, limits
        self._server, self._listener = server, listener
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._drain_timer: asyncio.TimerHandle | None = None

    def drain(self) -> None:
        """Stop accepting requests, wait for open ones, then stop; after the timeout, cancel them with an error.

        A second call cancels open requests immediately.
        """
        if self._server.should_exit:
            self.gateway.service.end_all()
            return
        self.gateway.service.draining = True
        self._server.should_exit = True
        loop = asyncio.get_running_loop()
        self._drain_timer = loop.call_later(
            self.gateway.service.settings.drain_timeout_s, self.gateway.service.end_all
        )

    async def listening(self, serving: asyncio.Future[None]) -> None:
        """Wait until the server answers; ``serving`` is the task that runs ``serve``."""
        while not self._server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)

    async def serve(self) -> None:
        """Run until ``drain``."""
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            if self._drain_timer is not None:
                self._drain_timer.cancel()


@asynccontextmanager
async def running_gateway(
    backend: HybridInferenceBackend, settings: GatewaySettings | None = None, *, keys: Iterable[APIKey] = ()
) -> AsyncIterator[RunningGateway]:
    """A gateway over a started backend, in the running event loop; on exit, open requests are awaited.

    ``keys`` are added to those of ``settings.keys_file``.

    Raises:
        ConfigError: the settings are inconsistent, or the port is in use.
    """
    settings = settings or GatewaySettings()
    running = _make(backend, settings, [*check_settings(settings), *keys])
    serving = asyncio.ensure_future(running.serve())
    try:
        await running.listening(serving)
        yield running
    finally:
        running.drain()
        await serving


async def run_until_signal(
    backend: HybridInferenceBackend,
    settings: GatewaySettings,
    keys: Iterable[APIKey],
    listener: socket.socket,
    *,
    load: Callable[[], Coroutine[Any, Any, None]],
    on_ready: Callable[[str], None],
    on_drain: Callable[[int], None],
    on_made: Callable[[Service], object] | None = None,
) -> None:
    """Listen, start the backend, and serve until SIGTERM or SIGINT; a second one ends open requests immediately.

    ``load`` starts the backend. Until it has, requests for work are answered with 503, and a signal cancels it.
    ``on_ready`` receives the address once requests are accepted, ``on_drain`` the number of open requests at each
    signal, ``on_made`` the shared state of the endpoints before the first request.
    """
    # By default an engine's thread would wait for 5 ms in each step while the event loop reads a large request.
    sys.setswitchinterval(_SWITCH_S)
    running = _make(backend, settings, keys, listener)
    service = running.gateway.service
    service.loading = True
    if on_made is not None:
        on_made(service)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        open_requests = len(running.gateway.service.open)
        running.drain()
        on_drain(open_requests)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        serving = asyncio.ensure_future(running.serve())
        await running.listening(serving)
        loading = asyncio.ensure_future(load())
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            try:
                loading.result()
            except BaseException:
                running.drain()
                await serving
                raise
            service.loading = False
            on_ready(running.url)
        else:  # a signal came first
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await serving
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _make(
    backend: HybridInferenceBackend,
    settings: GatewaySettings,
    keys: Iterable[APIKey],
    listener: socket.socket | None = None,
) -> RunningGateway:
    gateway = Gateway(backend, settings, keys=keys)
    max_idle = _idle_connections(settings)
    max_connections = max_idle + settings.max_open_requests
    limits = ConnectionLimits(
        max_idle=max_idle,
        max_connections=max_connections,
        max_per_peer=settings.max_connections_per_peer or -(-max_connections * 3 // 4),
        header_timeout_s=settings.header_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        idle_timeout_s=_KEEP_ALIVE_S,
    )
    config = uvicorn.Config(
        gateway,
        http=limited_protocol(limits),
        ws="none",
        proxy_headers=False,
        lifespan="off",
        loop="none",  # the caller's
        access_log=False,
        log_config=None,
        log_level=logging.ERROR,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s + _LAST_WORDS_S) + 1,
    )
    return RunningGateway(gateway, _Server(config), listener or listen(settings), limits)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: this module handles signals."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


def listen(settings: GatewaySettings, *, shared: bool = False) -> socket.socket:
    """A socket at the settings' host and port; if ``shared``, others of this user may listen there, too.

    Raises:
        ConfigError: the port is in use, or the host is not an address of this machine.
    """
    return _bound(settings, shared=shared, backlog=2048)


def reserve(settings: GatewaySettings) -> socket.socket:
    """A socket that keeps a port for ``listen(…, shared=True)`` without listening there.

    Raises:
        ConfigError: the port is in use, or the host is not an address of this machine.
    """
    with _bound(settings, shared=False, backlog=1) as alone:  # nobody else listens there, shared or not
        port = alone.getsockname()[1]
    return _bound(evolve(settings, port=port), shared=True)


def _bound(settings: GatewaySettings, *, shared: bool, backlog: int = 0) -> socket.socket:
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Inherited by connections: without it, a first token waits 40 ms for an acknowledgement.
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Linux keeps up to 4 MB that a client does not read; with less, writing stops while few bytes wait.
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
            # Linux also ends connections whose kernel buffers nobody reads.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                milliseconds = int(settings.write_timeout_s * 1000)
                bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            bound.bind(address)
            if backlog:
                bound.listen(backlog)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        hint = "; the port is in use, choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}{hint}") from None
    bound.setblocking(False)
    return bound


def _idle_connections(settings: GatewaySettings) -> int:
    """The configured limit, or the file-descriptor limit minus those for open requests."""
    try:
        import resource
    except ImportError:  # not available on this system
        return settings.max_idle_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_idle_connections + settings.max_open_requests + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings.max_idle_connections
    return max(16, soft - settings.max_open_requests - _OWN_FILES)


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop, if available."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
