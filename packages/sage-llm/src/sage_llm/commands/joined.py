"""Models of OpenAI-compatible servers that serve as replicas."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

import attrs
from attrs import frozen
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, PluginFailed, SageInferError
from sage_infer.names import ModelType
from sage_infer.schemas import ModelDescriptor

from sage_llm.manager.models import JoinedServer, ServedModel
from sage_llm.replicas.openai.client import error_of, listed

__all__ = ["Join", "joins", "with_joined"]

_ANSWER_S = 30.0
_READY_S = 300.0  # a server that loads its model answers 503
_KEYS = ("url", "api_key_env", "type")


@frozen
class Join:
    """A server to join.

    Attributes:
        url: its address, with or without ``/v1``.
        api_key_env: environment variable with its API key; None sends no key.
        type: type of its models that do not report one, as those of ``sage infer serve`` do.
    """

    url: str
    api_key_env: str | None = None
    type: ModelType = "llm"


def joins(entries: Iterable[Any], api_key_env: str | None = None) -> list[Join]:
    """Servers as flags or the configuration name them: URLs, or mappings with the fields of ``Join``.

    Raises:
        InvalidRequest: an entry has an unknown key, type or URL.
    """
    found = []
    for entry in entries:
        values = dict(entry) if isinstance(entry, Mapping) else {"url": entry}
        if unknown := [str(key) for key in values if key not in _KEYS]:
            raise InvalidRequest(f"llm.join: an entry has no key {unknown[0]!r}; keys: {', '.join(_KEYS)}")
        url = values.get("url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"--join must be a URL such as http://host:8000, got {url!r}")
        if values.get("type", "llm") not in get_args(ModelType):
            raise InvalidRequest(
                f"llm.join: type must be {', '.join(get_args(ModelType))}, got {values['type']!r}"
            )
        values["url"] = url.rstrip("/").removesuffix("/v1")
        found.append(Join(**{"api_key_env": api_key_env, **values}))
    return found


def with_joined(
    models: Sequence[ServedModel], servers: Sequence[Join], *, ready_s: float = _READY_S
) -> list[ServedModel]:
    """The models with the servers as further replicas; models that only they have are added.

    Args:
        ready_s: how long to wait for a server that answers 429 or 503.

    Raises:
        BackendUnavailable: a server does not answer, or lists no model.
        ConfigError: it refuses the API key, or there is none.
        PluginFailed: its answer is not a list of models.
    """
    found = {model.descriptor.model_id: model for model in models}
    for server in servers:
        joined = JoinedServer(url=server.url, api_key_env=server.api_key_env)
        for descriptor in _models(server, ready_s):
            known = found.get(descriptor.model_id)
            if known is None:
                known = ServedModel(descriptor=descriptor, backend="openai", replicas=0)
            found[descriptor.model_id] = attrs.evolve(known, joined=(*known.joined, joined))
    return list(found.values())


def _models(server: Join, ready_s: float) -> list[ModelDescriptor]:
    rows = _rows(server, time.monotonic() + ready_s)
    if not rows:
        raise BackendUnavailable(f"the server at {server.url} lists no model")
    return [
        ModelDescriptor(
            model_id=row["id"],
            model_type=cast(ModelType, row["type"])
            if row.get("type") in get_args(ModelType)
            else server.type,
            model_path=server.url,
            max_sequence_length=row.get("max_model_len"),
        )
        for row in rows
    ]


def _rows(server: Join, until: float) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{server.url}/v1/models")
    if server.api_key_env is not None:
        key = os.environ.get(server.api_key_env)
        if not key:
            raise ConfigError(f"{server.api_key_env} is not set; set it to the API key of {server.url}")
        request.add_header("Authorization", f"Bearer {key}")
    while True:
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return listed(json.load(answer), server.url)
        except urllib.error.HTTPError as error:
            if error.code in (429, 503) and time.monotonic() < until:
                time.sleep(1.0)
                continue
            raise _refused(server, error) from None
        except ValueError:
            raise PluginFailed(
                f"{server.url}/v1/models does not answer with JSON; is it an OpenAI-compatible server?"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise BackendUnavailable(
                f"cannot reach {server.url}/v1/models ({reason}); is the server ready?"
            ) from None


def _refused(server: Join, error: urllib.error.HTTPError) -> SageInferError:
    if error.code in (401, 403):
        told = (
            "needs an API key" if server.api_key_env is None else f"refuses the key in {server.api_key_env}"
        )
        return ConfigError(
            f"{server.url} {told} ({error.code}); name the environment variable that has it with --join-key-env"
        )
    if error.code == 404:
        return BackendUnavailable(
            f"{server.url} has no /v1/models (404); --join needs the address of an OpenAI-compatible server, "
            "without the part after /v1"
        )
    found = error_of(error.code, {}, error.read())
    return BackendUnavailable(f"{server.url}/v1/models does not list models: {found.message}")
