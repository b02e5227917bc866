"""The gateway as an ASGI application: routing, limits, and conversion of errors to responses.

No framework is used: a dictionary finds the route, and shared steps (keys, limits, timeouts, disconnects, errors)
are implemented here once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

from sage_infer.compat import uncancel
from sage_infer.contracts import HybridInferenceBackend
from sage_infer.errors import SageInferError

from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.http.errors import HTTPError, as_http_error, unavailable, wrong_request
from sage_infer_serve.http.exchange import Exchange, Receive, Scope, Send
from sage_infer_serve.http.origins import Origins
from sage_infer_serve.http.shares import Metered
from sage_infer_serve.openai.schema import Decoder
from sage_infer_serve.routes import ROUTES
from sage_infer_serve.routing import Handler, Route, Router
from sage_infer_serve.service import Service
from sage_infer_serve.settings import GatewaySettings

__all__ = ["Gateway"]

log = logging.getLogger("sage_infer.serve")

_LOADING_S = 2.0  # Retry-After during loading
_CLIENT_GONE = 499  # nginx's status for it, in metrics and logs only


class Gateway:
    """An OpenAI-compatible API over one backend. The caller starts and closes the backend.

    Attributes:
        service: shared state of its endpoints.
    """

    def __init__(
        self,
        backend: HybridInferenceBackend,
        settings: GatewaySettings | None = None,
        *,
        keys: Iterable[APIKey] = (),
    ) -> None:
        settings = settings or GatewaySettings()
        kinds = {route.request for route in ROUTES if route.request is not None}
        self.service = Service(
            backend, settings, keys, {kind: Decoder(kind, settings.strict) for kind in kinds}
        )
        self._router = Router(ROUTES)
        self._origins = Origins(settings, has_keys=bool(self.service.keys))
        self._id_head, self._id_count = secrets.token_hex(6), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        self._id_count += 1
        exchange = Exchange(scope, receive, send, f"{self._id_head}{self._id_count:08x}")
        try:
            await self._answer(exchange)
        except HTTPError as error:
            await exchange.fail(error)
        except SageInferError as error:
            await exchange.fail(as_http_error(error))
        except asyncio.CancelledError:
            if not exchange.stopped:
                raise
            await self._stopped(exchange)
        except RecursionError:
            await exchange.fail(wrong_request("the request is nested too deeply"))
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            message = f"internal error; see the server's log for request {exchange.request_id}"
            await exchange.fail(HTTPError(500, message, kind="server_error", code="internal_error"))
        finally:
            self._account(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.scope["method"]
        if self._origins.is_checked:
            exchange.extra_headers = self._origins.check(exchange)
        if method == "OPTIONS":
            headers = self._origins.preflight(exchange) or ((b"allow", self._router.allowed(path)),)
            await exchange.respond(b"", status=204, headers=headers)
            return
        route = self._router.find(method, path)
        if self.service.keys and not route.is_public:
            exchange.key = self.service.keys.check(exchange.headers.get(b"authorization"))
            exchange.client = exchange.key.name
        if route.is_counted:
            await self._work(exchange, route)
        else:
            await route.handler(self.service, exchange)

    async def _work(self, exchange: Exchange, route: Route) -> None:
        """Run a request that uses an engine, within the limits."""
        if self.service.draining:
            raise unavailable("the server is shutting down; use another one", 1.0, code="shutting_down")
        if self.service.loading:
            raise unavailable("models are being loaded; see /health for progress", _LOADING_S, code="loading")
        self.service.check_room(exchange.client)
        self.service.check_queues(route.types, exchange.client)
        if exchange.key is not None:
            exchange.key.admit()
        self.service.receiving.add(exchange)
        if not exchange.has_body:
            exchange.stop_after(self.service.settings.body_timeout_s, "body")
        try:
            await self._paced(exchange, route.handler)
        except asyncio.CancelledError:
            with suppress(SageInferError):
                await self.service.backend.abort(exchange.request_id)
            raise
        finally:
            exchange.in_time()
            exchange.unwatch()
            exchange.release_body()
            self.service.receiving.discard(exchange)
            self.service.open.discard(exchange)
            if exchange.key is not None:
                exchange.key.release()

    async def _paced(self, exchange: Exchange, handler: Handler) -> None:
        """Run a handler when it is its client's turn, and charge the client for what it took of the event loop."""
        service, client = self.service, exchange.client
        reserved = await service.shares.turn(client, (other.client for other in service.open))
        work = Metered(handler(service, exchange), lambda: exchange.status)
        is_rejected = True
        try:
            await work
            is_rejected = False
        except HTTPError as error:
            is_rejected = error.status < 500 and error.status != 429
            raise
        except SageInferError as error:
            is_rejected = as_http_error(error).status < 429
            raise
        finally:
            service.shares.spent(client, work.seconds, reserved=reserved, is_rejected=is_rejected)

    async def _stopped(self, exchange: Exchange) -> None:
        """After ``Exchange.stop`` cancelled the exchange's task: send the reason to the client, if still connected."""
        task = asyncio.current_task()
        if task is not None:
            uncancel(task)
        if exchange.stopped == "client":
            exchange.status = exchange.status or _CLIENT_GONE
        elif exchange.stopped == "body":
            await exchange.fail(wrong_request("timed out waiting for the request body", status=408))
        elif exchange.stopped == "timeout":
            seconds = self.service.settings.request_timeout_s
            message = f"the request exceeded {seconds:g} s; request fewer tokens, or raise the server's limit"
            await exchange.fail(HTTPError(504, message, kind="server_error", code="timeout"))
        else:
            message = "the server is shutting down; retry later"
            await exchange.fail(HTTPError(503, message, kind="server_error", code="shutting_down"))

    def _account(self, exchange: Exchange) -> None:
        self.service.recorder.answered(self._router.label(exchange.path), exchange.model, exchange.status)
        if self.service.settings.log_requests:
            scope = exchange.scope
            target = scope.get("raw_path") or exchange.path.encode()
            log.info(
                "%s %s %s %d %.1f ms key=%s model=%s%s",
                exchange.request_id, scope["method"], target.decode("ascii", "backslashreplace"), exchange.status,
                (time.perf_counter() - exchange.started) * 1000, exchange.key.name if exchange.key else "-",
                exchange.model or "-", f" ended by {exchange.stopped}" if exchange.stopped else "",
            )  # fmt: skip


async def _lifespan(receive: Receive, send: Send) -> None:
    """Acknowledge the server's startup and shutdown events."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
