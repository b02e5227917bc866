"""``GET /v1/models`` and ``GET /v1/models/NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sage_infer.errors import SageInferError
from sage_infer.schemas import ModelDescriptor

from sage_infer_serve.errors import as_http_error
from sage_infer_serve.exchange import Exchange

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway

__all__ = ["PREFIX", "list_models", "show_model"]

PREFIX = "/v1/models/"


async def list_models(gateway: Gateway, exchange: Exchange) -> None:
    data = [_as_dict(gateway, model) for model in gateway.backend.list_models()]
    await exchange.respond(msgspec.json.encode({"object": "list", "data": data}))


async def show_model(gateway: Gateway, exchange: Exchange) -> None:
    """A model by its id or alias; ids may have slashes."""
    name = exchange.path.removeprefix(PREFIX)
    try:
        status = gateway.backend.get_model_status(name)
    except SageInferError as error:
        raise as_http_error(error) from None
    model = next(m for m in gateway.backend.list_models() if m.model_id == status.model_id)
    await exchange.respond(msgspec.json.encode(_as_dict(gateway, model)))


def _as_dict(gateway: Gateway, model: ModelDescriptor) -> dict[str, Any]:
    """OpenAI's fields, and ours: the model's kind and state."""
    status = gateway.backend.get_model_status(model.model_id)
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(gateway.started),
        "owned_by": "sage-infer",
        "type": model.model_type,
        "state": status.state,
        "max_model_len": model.max_sequence_length,
    }
