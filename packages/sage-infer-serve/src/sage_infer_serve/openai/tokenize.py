"""``POST /tokenize`` and ``/detokenize``, in vLLM's format, if the backend supports it."""

from __future__ import annotations

import msgspec
from sage_infer.contracts import HybridTokenizing
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import Prompt

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.openai.messages import as_chat, tools_as_dicts
from sage_infer_serve.openai.rendering import render
from sage_infer_serve.openai.schema import DetokenizeRequest, TokenizeRequest
from sage_infer_serve.service import Service
from sage_infer_serve.work import CHAT

__all__ = ["detokenize", "tokenize"]


async def tokenize(service: Service, exchange: Exchange) -> None:
    request: TokenizeRequest = await service.read(exchange, TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise wrong_request("exactly one of prompt and messages is required", "prompt")
    backend = _tokenizing(service)
    name = CHAT.model(service, request.model)
    if request.messages is not None:
        prompt = await render(
            backend,
            request,
            as_chat(request.messages, text_only=service.is_text_only(name)),
            model=name,
            tools=tools_as_dicts(request.tools) if request.tools else None,
        )
    else:
        prompt = Prompt(text=request.prompt, add_special_tokens=request.add_special_tokens)
    tokens = await backend.tokenize(prompt, model=name)
    model_id = service.backend.get_model_status(name).model_id
    model = next((m for m in service.backend.list_models() if m.model_id == model_id), None)
    answer = {
        "count": len(tokens),
        "max_model_len": None if model is None else service.context_length(model),
        "tokens": tokens,
    }
    await exchange.respond(msgspec.json.encode(answer))


async def detokenize(service: Service, exchange: Exchange) -> None:
    request: DetokenizeRequest = await service.read(exchange, DetokenizeRequest)
    name = CHAT.model(service, request.model)
    text = await _tokenizing(service).detokenize(request.tokens, model=name)
    await exchange.respond(msgspec.json.encode({"prompt": text}))


def _tokenizing(service: Service) -> HybridTokenizing:
    backend = service.backend
    if not isinstance(backend, HybridTokenizing):
        raise UnsupportedFeature("the server's backend does not support tokenization")
    return backend
