"""The methods that a replica's clients can call, and how each calls the backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import attrs
import msgspec
from sage_infer.contracts import KVEvents, TokenStream
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import RequestOptions

from sage_llm.replicas import calls
from sage_llm.replicas.hand_over import HandOverRoom
from sage_llm.replicas.spans import OpenSpan, Spans

__all__ = ["METHODS", "Method", "Opened", "perform"]


@attrs.frozen
class Opened:
    """Streams that a call opened, one per slot, or its KV events; ``span`` ends with the streams."""

    streams: list[TokenStream] = attrs.field(factory=list)
    events: AsyncIterator[KVEvents] | None = None
    span: OpenSpan | None = None


Perform = Callable[[Any, Any, set[str]], Awaitable[Any]]


@attrs.frozen
class Method:
    """A method: decoder of its arguments, and the function that calls the backend, or the ``HandOverRoom``."""

    decode: Callable[[bytes], Any]
    perform: Perform
    on_room: bool = False


async def perform(
    backend: Any,
    room: HandOverRoom,
    name: str,
    arguments: bytes,
    held: set[str],
    spans: Spans | None = None,
) -> Any:
    """Call a method of the backend or of the room; return its result, or an ``Opened``.

    With ``spans``, a call with a trace context is a span below it.
    ``held`` are the ids of requests whose prefill is held for the client; the method updates it.

    Raises:
        UnsupportedFeature: the protocol or the backend has no such method.
        InvalidRequest: the arguments have other types.
    """
    method = METHODS.get(name)
    if method is None or not (method.on_room or hasattr(backend, name)):
        raise UnsupportedFeature(f"this replica has no method {name!r}; use a replica of the same version")
    try:
        decoded = method.decode(arguments)
        if spans is not None and not method.on_room and getattr(decoded, "options", None) is not None:
            return await _traced(backend, method, name, decoded, held, spans)
        return await method.perform(room if method.on_room else backend, decoded, held)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"arguments of {name} are invalid: {error}") from None


async def _traced(target: Any, method: Method, name: str, decoded: Any, held: set[str], spans: Spans) -> Any:
    """Call a method within a span, which ends with the call, or with the stream that it has opened."""
    options: RequestOptions = decoded.options
    capability = target.get_capability()
    span = spans.begin(f"{name} {capability.backend_name}", options.trace or {}, serves=True)
    span.set({"gen_ai.operation.name": name, "gen_ai.provider.name": capability.backend_name})
    takes = capability.supports("trace")
    decoded.options = attrs.evolve(options, trace=dict(span.carrier or {}) if takes else {})
    try:
        result = await method.perform(target, decoded, held)
    except BaseException as error:
        span.end(error)
        raise
    if isinstance(result, Opened):
        return attrs.evolve(result, span=span)
    span.end()
    return result


async def _generate(backend: Any, a: calls.Generate, held: set[str]) -> Opened:
    prompts, params = list(a.prompts), calls.params_of(a.params)
    return Opened(await backend.generate(prompts, params, request_id=a.request_id, options=a.options))


async def _resume(backend: Any, a: calls.Resume, held: set[str]) -> Opened:
    return Opened([await backend.resume(a.states, request_id=a.request_id, options=a.options)])


async def _decode(backend: Any, a: calls.Decode, held: set[str]) -> Opened:
    result = await backend.decode(a.state, request_id=a.request_id, options=a.options)
    held.discard(a.state.request_id)
    return Opened([result.stream])


async def _prefill(backend: Any, a: calls.Prefill, held: set[str]) -> Any:
    params = None if a.params is None else calls.params_of(a.params)
    result = await backend.prefill(
        list(a.prompts), request_id=a.request_id, params=params, options=a.options, hold_s=a.hold_s
    )
    held.update(state.request_id for state in result.states)
    return result


async def _export_kv(backend: Any, a: calls.State, held: set[str]) -> calls.Exported:
    state, buffers = await backend.export_kv(a.state)
    return calls.Exported(state, tuple(map(bytes, buffers)))


async def _import_kv(backend: Any, a: calls.ImportKV, held: set[str]) -> Any:
    state = await backend.import_kv(a.state, [memoryview(buffer) for buffer in a.buffers])
    held.add(state.request_id)
    return state


async def _prefetch_kv(backend: Any, a: calls.PrefetchKV, held: set[str]) -> Any:
    return await backend.prefetch_kv(a.token_ids, cache_salt=a.cache_salt)


async def _publish_kv(room: HandOverRoom, a: calls.PublishKV, held: set[str]) -> Any:
    return await room.publish(a.state, a.transport)


async def _fetch_kv(room: HandOverRoom, a: calls.FetchKV, held: set[str]) -> calls.Fetched:
    state, nbytes = await room.fetch(a.state, a.transport, a.settings)
    held.add(state.request_id)
    return calls.Fetched(state, nbytes)


async def _release_kv(room: HandOverRoom, a: calls.Abort, held: set[str]) -> None:
    held.discard(a.request_id)
    await room.release(a.request_id)


async def _kv_snapshot(backend: Any, _: calls.Nothing, held: set[str]) -> Any:
    return await backend.kv_snapshot()


async def _kv_events(backend: Any, a: calls.KVSince, held: set[str]) -> Opened:
    return Opened(events=backend.kv_events(a.since))


async def _render_chat(backend: Any, a: calls.RenderChat, held: set[str]) -> Any:
    return await backend.render_chat(
        a.messages,
        tools=a.tools,
        template_variables=a.template_variables,
        add_generation_prompt=a.add_generation_prompt,
    )


async def _tokenize(backend: Any, a: calls.Tokenize, held: set[str]) -> Any:
    return await backend.tokenize(a.prompt)


async def _detokenize(backend: Any, a: calls.Detokenize, held: set[str]) -> Any:
    return await backend.detokenize(a.token_ids)


async def _parse_tool_calls(backend: Any, a: calls.ParseToolCalls, held: set[str]) -> Any:
    return await backend.parse_tool_calls(a.text, tools=a.tools)


async def _answer_format(backend: Any, _: calls.Nothing, held: set[str]) -> Any:
    return calls.format_data(await backend.answer_format())


async def _embed(backend: Any, a: calls.Embed, held: set[str]) -> calls.Embedded:
    options: dict[str, Any] = {"truncate": a.truncate, "request_id": a.request_id, "options": a.options}
    if a.batch_size is None:
        result = await backend.embed(list(a.texts), **options)
    else:
        result = await backend.embed_batch(list(a.texts), a.batch_size, **options)
    return calls.Embedded(result.model_id, result.dim, bytes(result.data), result.usage, result.text_tokens)


async def _rerank(backend: Any, a: calls.Rerank, held: set[str]) -> Any:
    return await backend.rerank(
        a.query, a.documents, top_n=a.top_n, request_id=a.request_id, options=a.options
    )


async def _abort(backend: Any, a: calls.Abort, held: set[str]) -> None:
    await backend.abort(a.request_id)
    held.difference_update([one for one in held if one == a.request_id or one.startswith(f"{a.request_id}/")])


async def _health(backend: Any, _: calls.Nothing, held: set[str]) -> Any:
    return await backend.health()


def _method(arguments: type[msgspec.Struct], function: Perform, *, on_room: bool = False) -> Method:
    return Method(msgspec.msgpack.Decoder(arguments).decode, function, on_room)


METHODS: Mapping[str, Method] = {
    "generate": _method(calls.Generate, _generate),
    "resume": _method(calls.Resume, _resume),
    "decode": _method(calls.Decode, _decode),
    "prefill": _method(calls.Prefill, _prefill),
    "export_kv": _method(calls.State, _export_kv),
    "import_kv": _method(calls.ImportKV, _import_kv),
    "publish_kv": _method(calls.PublishKV, _publish_kv, on_room=True),
    "fetch_kv": _method(calls.FetchKV, _fetch_kv, on_room=True),
    "release_kv": _method(calls.Abort, _release_kv, on_room=True),
    "prefetch_kv": _method(calls.PrefetchKV, _prefetch_kv),
    "kv_snapshot": _method(calls.Nothing, _kv_snapshot),
    "kv_events": _method(calls.KVSince, _kv_events),
    "render_chat": _method(calls.RenderChat, _render_chat),
    "tokenize": _method(calls.Tokenize, _tokenize),
    "detokenize": _method(calls.Detokenize, _detokenize),
    "parse_tool_calls": _method(calls.ParseToolCalls, _parse_tool_calls),
    "answer_format": _method(calls.Nothing, _answer_format),
    "embed": _method(calls.Embed, _embed),
    "embed_batch": _method(calls.Embed, _embed),
    "rerank": _method(calls.Rerank, _rerank),
    "abort": _method(calls.Abort, _abort),
    "health": _method(calls.Nothing, _health),
}
"""All methods by name."""
