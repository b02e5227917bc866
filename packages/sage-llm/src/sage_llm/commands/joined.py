"""Models of OpenAI-compatible servers that serve as replicas."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import cast, get_args

import attrs
from sage_infer.errors import BackendUnavailable, InvalidRequest
from sage_infer.names import ModelType
from sage_infer.schemas import ModelDescriptor

from sage_llm.manager.models import ServedModel

__all__ = ["with_joined"]

_ANSWER_S = 30.0


def with_joined(models: Sequence[ServedModel], urls: Sequence[str]) -> list[ServedModel]:
    """The models with the servers at ``urls`` as further replicas; models that only they have are added.

    Raises:
        InvalidRequest: a URL is not one of HTTP.
        BackendUnavailable: a server does not answer, or lists no model.
    """
    found = {model.descriptor.model_id: model for model in models}
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"--join must be a URL such as http://host:8000, got {url!r}")
        base = url.rstrip("/").removesuffix("/v1")
        for descriptor in _models(base):
            known = found.get(descriptor.model_id)
            if known is None:
                known = ServedModel(descriptor=descriptor, backend="openai", replicas=0)
            found[descriptor.model_id] = attrs.evolve(known, joined=(*known.joined, base))
    return list(found.values())


def _models(base: str) -> list[ModelDescriptor]:
    try:
        with urllib.request.urlopen(f"{base}/v1/models", timeout=_ANSWER_S) as answer:
            rows = json.load(answer)["data"]
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError) as error:
        raise BackendUnavailable(
            f"{base}/v1/models does not list models ({error}); is the server ready?"
        ) from None
    if not rows:
        raise BackendUnavailable(f"the server at {base} lists no model")
    return [
        ModelDescriptor(
            model_id=row["id"],
            model_type=cast(ModelType, row["type"]) if row.get("type") in get_args(ModelType) else "llm",
            model_path=base,
            max_sequence_length=row.get("max_model_len"),
        )
        for row in rows
    ]
