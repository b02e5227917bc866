"""The gateway as an ASGI application: from a request's method and path to its endpoint, and from errors to answers.

No framework stands between the server and an endpoint: a dictionary finds the route, and what all of them need (keys,
limits, time, the client going away, errors) happens here, once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from attrs import frozen
from msgspec import Struct
from sage_infer.contracts import HybridInferenceBackend
from sage_infer.errors import SageInferError
from sage_infer.names import ModelType
from sage_infer.schemas import SamplingParams

from sage_infer_serve import pages, probes
from sage_infer_serve.auth import APIKey, Keys
from sage_infer_serve.errors import HTTPError, as_http_error, limited, wrong_request
from sage_infer_serve.exchange import Exchange, Receive, Scope, Send
from sage_infer_serve.observe import Recorder
from sage_infer_serve.openai.chat import chat_completions
from sage_infer_serve.openai.completions import completions
from sage_infer_serve.openai.embeddings import embeddings
from sage_infer_serve.openai.models import PREFIX, list_models, show_model
from sage_infer_serve.openai.rerank import rerank
from sage_infer_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    Decoder,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    TokenizeRequest,
)
from sage_infer_serve.openai.tokenize import detokenize, tokenize
from sage_infer_serve.origins import Origins
from sage_infer_serve.settings import GatewaySettings
from sage_infer_serve.tracing import Tracing
from sage_infer_serve.work import Work

__all__ = ["ROUTES", "Gateway", "Route"]

log = logging.getLogger("sage_infer.serve")

Handler = Callable[["Gateway", Exchange], Awaitable[None]]


@frozen
class Route:
    """An endpoint. ``works`` marks what takes an engine's time, and so counts against limits."""

    handler: Handler
    request: type[Struct] | None = None
    works: bool = False
    open_to_all: bool = False


ROUTES: Mapping[tuple[str, str], Route] = {
    ("POST", "/v1/chat/completions"): Route(chat_completions, ChatRequest, works=True),
    ("POST", "/v1/completions"): Route(completions, CompletionRequest, works=True),
    ("POST", "/v1/embeddings"): Route(embeddings, EmbeddingRequest, works=True),
    ("POST", "/v1/rerank"): Route(rerank, RerankRequest, works=True),
    ("POST", "/v2/rerank"): Route(rerank, RerankRequest, works=True),
    ("POST", "/rerank"): Route(rerank, RerankRequest, works=True),
    ("POST", "/tokenize"): Route(tokenize, TokenizeRequest, works=True),
    ("POST", "/detokenize"): Route(detokenize, DetokenizeRequest, works=True),
    ("GET", "/v1/models"): Route(list_models),
    ("GET", "/metrics"): Route(probes.metrics),
    ("GET", "/dashboard/state"): Route(probes.dashboard_state),
    ("GET", "/openapi.json"): Route(probes.openapi, open_to_all=True),
    ("GET", "/health"): Route(probes.health, open_to_all=True),
    ("GET", "/ready"): Route(probes.ready, open_to_all=True),
}
_MODEL = Route(show_model)
_METHODS = {path: sorted(m for m, p in ROUTES if p == path) for _, path in ROUTES}
_CLIENT_GONE = 499  # nginx's status for it, in metrics and logs only


class Gateway:
    """An OpenAI-compatible API over one backend, which stays its caller's: it is neither started nor closed here.

    Attributes:
        backend: what answers.
        recorder: what was measured.
        draining: no new work is taken, because the server is about to end.
        loading: of models that are being loaded, the stage and how much of it is done, for the dashboard.
    """

    def __init__(
        self,
        backend: HybridInferenceBackend,
        settings: GatewaySettings | None = None,
        *,
        keys: Iterable[APIKey] = (),
    ) -> None:
        self.backend = backend
        self.settings = settings or GatewaySettings()
        self.keys = Keys(keys)
        self.recorder = Recorder()
        self.tracing = Tracing() if self.settings.tracing else None
        self.started = time.time()
        self.draining = False
        self.loading: dict[str, tuple[str, float]] = {}
        self.open: set[Exchange] = set()
        self._origins = Origins(self.settings, has_keys=bool(self.keys))
        self._types: dict[str, ModelType] = {}
        self._pages = pages.read_pages()
        self._decoders = {
            route.request: Decoder(route.request, self.settings.strict)
            for route in ROUTES.values()
            if route.request is not None
        }
        self._id_head, self._id_count = secrets.token_hex(6), 0

    # --- one request

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
            message = f"internal error; the server's log has more under request {exchange.request_id}"
            await exchange.fail(HTTPError(500, message, kind="server_error", code="internal_error"))
        finally:
            self._account(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.scope["method"]
        if self._origins.is_checked:
            exchange.extra_headers = self._origins.check(exchange)
            if method == "OPTIONS":
                await exchange.respond(b"", status=204, headers=self._origins.preflight(exchange))
                return
        route = ROUTES.get((method, path))
        if route is None:
            route = self._other_route("GET" if method == "HEAD" else method, path)
        if self.keys and not route.open_to_all:
            exchange.key = self.keys.check(exchange.headers.get(b"authorization"))
        if route.works:
            await self._work(exchange, route.handler)
        else:
            await route.handler(self, exchange)

    def _other_route(self, method: str, path: str) -> Route:
        """A route that is not looked up whole, or the error that says what there is."""
        if method == "GET":
            if (method, path) in ROUTES:  # asked for by HEAD
                return ROUTES[method, path]
            if path in self._pages:
                return Route(pages.send_page, open_to_all=True)
            if path.startswith(PREFIX) and len(path) > len(PREFIX):
                return _MODEL
        allowed = _METHODS.get(path) or (["GET"] if path in self._pages or path.startswith(PREFIX) else None)
        if allowed is None:
            raise wrong_request(
                "there is nothing at this path; /openapi.json lists what there is",
                status=404,
                code="not_found",
            )
        error = wrong_request(
            f"this path takes {' and '.join(allowed)}", status=405, code="method_not_allowed"
        )
        error.headers = ((b"allow", ", ".join(allowed).encode()),)
        raise error

    async def _work(self, exchange: Exchange, handler: Handler) -> None:
        """Run what takes an engine's time, within the limits."""
        if self.draining:
            error = limited("the server is shutting down; ask another one", 1.0, code="shutting_down")
            error.status, error.kind = 503, "server_error"
            raise error
        limit = self.settings.max_open_requests
        if len(self.open) >= limit:
            raise limited(f"{limit} requests are open already; try again", 1.0, code="overloaded")
        if exchange.key is not None:
            exchange.key.admit()
        self.open.add(exchange)
        if not exchange.has_body:
            exchange.stop_after(self.settings.body_timeout_s, "body")
        try:
            await handler(self, exchange)
        finally:
            exchange.in_time()
            exchange.unwatch()
            self.open.discard(exchange)
            if exchange.key is not None:
                exchange.key.release()

    async def _stopped(self, exchange: Exchange) -> None:
        """The exchange's task was cancelled by ``Exchange.stop``: tell the client why, where there still is one."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if exchange.stopped == "client":
            exchange.status = exchange.status or _CLIENT_GONE
        elif exchange.stopped == "body":
            await exchange.fail(wrong_request("the body did not arrive in time; send it at once", status=408))
        elif exchange.stopped == "timeout":
            seconds = self.settings.request_timeout_s
            message = f"the request took longer than {seconds:g} s; ask for fewer tokens, or raise the server's limit"
            await exchange.fail(HTTPError(504, message, kind="server_error", code="timeout"))
        else:
            message = "the server is shutting down; ask again in a moment"
            await exchange.fail(HTTPError(503, message, kind="server_error", code="shutting_down"))

    def _account(self, exchange: Exchange) -> None:
        path = exchange.path
        endpoint = path if path in _METHODS else PREFIX + "…" if path.startswith(PREFIX) else "other"
        self.recorder.answered(endpoint, exchange.model, exchange.status)
        if self.settings.log_requests:
            scope = exchange.scope
            target = scope.get("raw_path") or path.encode()
            log.info(
                "%s %s %s %d %.1f ms key=%s model=%s%s",
                exchange.request_id, scope["method"], target.decode("ascii", "backslashreplace"), exchange.status,
                (time.perf_counter() - exchange.started) * 1000, exchange.key.name if exchange.key else "-",
                exchange.model or "-", f" ended by {exchange.stopped}" if exchange.stopped else "",
            )  # fmt: skip

    # --- what endpoints use

    async def read(self, exchange: Exchange, kind: type[Struct]) -> Any:
        """The request, checked. From here on the exchange ends when its client goes away.

        Raises:
            HTTPError: it is too long, not JSON, or a field is wrong.
        """
        body = await exchange.body(self.settings.max_body_bytes)
        request = self._decoders[kind](body)
        exchange.stop_after(self.settings.request_timeout_s, "timeout")
        exchange.watch()
        return request

    def generation(
        self, exchange: Exchange, operation: str, request: Sampling, params: SamplingParams
    ) -> Work:
        """Around generating: measures, traces, and tells a wrong kind of model from an unknown one."""
        work = Work(self, exchange, operation, request.model, ("llm", "multimodal"))
        if self.tracing is not None:
            work.trace(request, params)
        return work

    def embedding(self, exchange: Exchange, operation: str, model: str) -> Work:
        """Around embedding and reranking."""
        work = Work(
            self, exchange, operation, model, ("embedding",) if operation == "embeddings" else ("reranker",)
        )
        if self.tracing is not None:
            work.trace(None, None)
        return work

    def type_of(self, name: str) -> ModelType | None:
        """The kind of the model that a request names, by id or alias; None where there is none."""
        found: ModelType | None = self._types.get(name)
        if found is None:
            try:
                model_id = self.backend.get_model_status(name).model_id
            except SageInferError:
                return None
            kind = next(m.model_type for m in self.backend.list_models() if m.model_id == model_id)
            found = self._types[name] = kind  # names that exist only, so that it cannot grow without end
        return found

    def is_text_only(self, name: str) -> bool:
        return self.type_of(name) != "multimodal"

    def on_progress(self, model_id: str, stage: str, share: float) -> None:
        """For the backend to call while it loads a model."""
        self.loading[model_id] = stage, share

    def page(self, path: str) -> pages.Page:
        return self._pages[path]

    def end_all(self) -> None:
        """End every open request with an error, because the server has waited for them long enough."""
        for exchange in list(self.open):
            exchange.stop("shutdown")


async def _lifespan(receive: Receive, send: Send) -> None:
    """The server's start and end, of which nothing is made here."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
