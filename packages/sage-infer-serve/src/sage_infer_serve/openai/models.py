"""``GET /v1/models`` and ``GET /v1/models/NAME``."""

from __future__ import annotations

from typing import Any

import msgspec
from sage_infer.errors import SageInferError
from sage_infer.schemas import ModelDescriptor

from sage_infer_serve.http.errors import as_http_error
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.service import Service

__all__ = ["PREFIX", "list_models", "show_model"]

PREFIX = "/v1/models/"


async def list_models(service: Service, exchange: Exchange) -> None:
    data = [_as_dict(service, model) for model in service.backend.list_models()]
    await exchange.respond(msgspec.json.encode({"object": "list", "data": data}))


async def show_model(service: Service, exchange: Exchange) -> None:
    """A model by its id or alias; ids may have slashes."""
    name = exchange.path.removeprefix(PREFIX)
    try:
        status = service.backend.get_model_status(name)
    except SageInferError as error:
        raise as_http_error(error) from None
    model = next(m for m in service.backend.list_models() if m.model_id == status.model_id)
    await exchange.respond(msgspec.json.encode(_as_dict(service, model)))


def _as_dict(service: Service, model: ModelDescriptor) -> dict[str, Any]:
    """OpenAI's fields, plus the model's type, state, maximum length and features."""
    status = service.backend.get_model_status(model.model_id)
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(service.started),
        "owned_by": "sage-infer",
        "type": model.model_type,
        "state": status.state,
        "max_model_len": service.context_length(model),
        "features": service.features(model.model_id),
    }
