"""Exchanges with a Valkey or Redis server, each of which ends in time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest
from valkey import Valkey
from valkey.backoff import NoBackoff
from valkey.connection import PythonRespSerializer
from valkey.exceptions import ResponseError, ValkeyError
from valkey.retry import Retry

from sage_infer_kvstore.breaker import Breaker

__all__ = ["Server"]

T = TypeVar("T")

_SCHEMES = ("valkey", "redis", "unix")
_UNCOPIED_BYTES = 6000  # larger arguments are sent from where they are


class Server:
    """Connections to one server.

    Args:
        url: ``valkey://HOST:PORT/DB``, ``redis://…`` or ``unix://PATH?db=DB``.
        password_env: environment variable that holds the password; empty for the one in the URL, or none.
        timeout_s: how long an exchange may take, however slowly the bytes arrive.

    Raises:
        ConfigError: the URL has another form, or the variable is not set.
    """

    def __init__(self, url: str, *, password_env: str, timeout_s: float) -> None:
        self.name, db = _checked(url)
        options: dict[str, Any] = {"db": db}
        if password_env:
            if password_env not in os.environ:
                raise ConfigError(
                    f"password_env names {password_env}, which is not set; export the password in it"
                )
            options["password"] = os.environ[password_env]
        self._connect: Callable[[], Any] = lambda: Valkey.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            lib_name=None,
            lib_version=None,
            command_packer=PythonRespSerializer(_UNCOPIED_BYTES, _encoded),
            **options,
        )
        self._timeout_s = timeout_s
        self._breaker = Breaker()
        self._idle: list[Any] = []
        self._closed = False

    @property
    def failures(self) -> int:
        """Exchanges that failed, or did not end in time."""
        return self._breaker.failures

    def ask(self, exchange: Callable[[Any], T]) -> T:
        """Run an exchange on a connection of its own.

        Raises:
            InvalidRequest: the store is closed.
            BackendUnavailable: the server did not answer, or with an error; or it is left alone after failures.
        """
        if self._closed:
            raise InvalidRequest("the store is closed; open it again")
        if self._breaker.is_open:
            raise BackendUnavailable(
                f"{self.name} failed three times in a row and is left alone for {self._breaker.left_s:.0f} more "
                "seconds; check the server"
            )
        try:
            with self._lend() as client:
                answer = exchange(client)
        except Exception as error:  # a server that lies about its protocol raises anything
            self._breaker.failed()
            raise BackendUnavailable(f"{self.name}: {_reason(error, self._timeout_s)}") from error
        self._breaker.succeeded()
        return answer

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def _lend(self) -> Iterator[Any]:
        """A connection, which is cut at the end of the time and does not outlive a failure."""
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._connect()
        timer = threading.Timer(self._timeout_s, client.connection_pool.disconnect)
        timer.daemon = True
        timer.start()
        try:
            yield client
            timer.cancel()
        except BaseException:
            client.connection_pool.disconnect()  # what arrives late must not answer the next question
            raise
        else:
            self._idle.append(client)
        finally:
            timer.cancel()


def _checked(url: object) -> tuple[str, int]:
    """The server's name without its password, and the number of the database."""
    form = f"url must be {', '.join(f'{scheme}://…' for scheme in _SCHEMES)}"
    if not isinstance(url, str):
        raise ConfigError(f"{form}; got {url!r}")
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"{form}; got the scheme {parts.scheme!r}")
    query = parse_qs(parts.query)
    database = (query.pop("db", None) or [parts.path.strip("/") if parts.scheme != "unix" else ""])[0] or "0"
    if query:
        raise ConfigError(f"url takes the option db, and does not take {', '.join(sorted(query))}")
    if not database.isdecimal():
        raise ConfigError(f"the database in url must be a number, got {database!r}")
    place = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
    return f"the KV server at {parts.scheme}://{place}", int(database)


def _encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _reason(error: Exception, timeout_s: float) -> str:
    if isinstance(error, ResponseError):
        return f"it answered with an error: {error}"
    if isinstance(error, ValkeyError | OSError):
        return f"no answer within {timeout_s:g} s ({error})"
    return f"it was cut off after {timeout_s:g} s, or does not speak the protocol ({type(error).__name__}: {error})"
