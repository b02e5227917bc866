"""Routes, and the lookup by method and path."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from attrs import frozen
from msgspec import Struct
from sage_infer.names import ModelType

from sage_infer_serve.http.errors import HTTPError, wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.service import Service

__all__ = ["Handler", "Route", "Router"]

Handler = Callable[[Service, Exchange], Coroutine[Any, Any, None]]


@frozen(kw_only=True)
class Route:
    """An endpoint.

    Attributes:
        method: ``GET`` also serves ``HEAD``.
        path: a trailing ``{name}`` matches the rest, including slashes.
        handler: answers the request.
        summary: one sentence for the API's description; empty for the dashboard's files, which are not part of the API.
        request: the class that the body is decoded to; None for no body.
        answer: JSON Schema of the response; None for plain text.
        streams: whether the response may be an event stream.
        is_probe: whether 503 uses the response's format instead of the error format.
        is_counted: whether it uses an engine, so that limits and API keys count it.
        types: types of the models whose queues it joins.
        is_public: whether it requires no API key.
        takes_options: whether request headers become options of the request.
    """

    method: str
    path: str
    handler: Handler
    summary: str = ""
    request: type[Struct] | None = None
    answer: Mapping[str, Any] | None = None
    streams: bool = False
    is_probe: bool = False
    is_counted: bool = False
    types: tuple[ModelType, ...] = ()
    is_public: bool = False
    takes_options: bool = False

    @property
    def prefix(self) -> str:
        """The path up to its parameter, or the whole path."""
        return self.path.partition("{")[0]

    @property
    def parameter(self) -> str | None:
        """Name of the path's parameter."""
        return self.path.partition("{")[2].rstrip("}") or None


class Router:
    """Finds routes: by the whole path in a dictionary, then by the prefix of paths with a parameter.

    A slash at the end of a path of the API is ignored.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._open_ended: list[Route] = []
        self._by_path: dict[str, list[Route]] = {}
        self._all = tuple(routes)
        for route in self._all:
            self._by_path.setdefault(route.path, []).append(route)
            if route.parameter is None:
                self._exact[route.method, route.path] = route
            else:
                self._open_ended.append(route)

    def find(self, method: str, path: str) -> Route:
        """The route of a request.

        Raises:
            HTTPError: 404 for an unknown path, 405 for a wrong method.
        """
        route = self._exact.get((method, path))
        if route is not None:
            return route
        here = self._there(path)
        wanted = "GET" if method == "HEAD" else method
        found = next((route for route in here if route.method == wanted), None)
        if found is None:
            raise _not_allowed(_methods(here))
        return found

    def allowed(self, path: str) -> bytes:
        """The value of ``Allow`` for a path; ``*`` means the whole server (RFC 9110 9.3.7).

        Raises:
            HTTPError: 404 for an unknown path.
        """
        return ", ".join(_methods(self._all if path == "*" else self._there(path))).encode()

    def label(self, path: str) -> str:
        """The label of a path in metrics: its route, or ``other`` outside of the API."""
        here = self._at(path)
        return here[0].path if here and here[0].summary else "other"

    def _there(self, path: str) -> list[Route]:
        here = self._at(path)
        if not here:
            raise wrong_request("not found; /openapi.json lists all paths", status=404, code="not_found")
        return here

    def _at(self, path: str) -> list[Route]:
        here = self._by_path.get(path)
        if here is None and path.endswith("/"):  # with it, relative links of the dashboard would break
            here = [route for route in self._by_path.get(path[:-1], ()) if route.summary]
        if here:
            return here
        return [r for r in self._open_ended if path.startswith(r.prefix) and len(path) > len(r.prefix)]


def _methods(routes: Iterable[Route]) -> list[str]:
    methods = {route.method for route in routes}
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def _not_allowed(methods: list[str]) -> HTTPError:
    useful = " or ".join(method for method in methods if method != "OPTIONS")
    error = wrong_request(f"method not allowed; use {useful}", status=405, code="method_not_allowed")
    error.headers = ((b"allow", ", ".join(methods).encode()),)
    return error
