"""The section ``serve`` of the configuration."""

from __future__ import annotations

from typing import Any, get_args

from attrs import field, frozen
from sage_infer.schemas.capability import SharingMode
from sage_infer.sdk.fields import Choice, Each, Flag, Integer, Json, Number, Text, as_tuple, optional

__all__ = ["TEMPLATE", "Serve"]


@frozen(kw_only=True)
class Serve:
    """Settings of ``sage infer serve``: models, address, access and limits."""

    models: tuple[Any, ...] = field(default=(), converter=as_tuple, validator=Each(Json()))
    sharing: str = field(default="time_slice", validator=Choice(get_args(SharingMode)))
    host: str = field(default="127.0.0.1", validator=Text(min_length=1))
    port: int = field(default=8000, validator=Integer(ge=0, le=65535))
    keys_file: str | None = field(default=None, validator=optional(Text(min_length=1)))
    strict: bool = field(default=False, validator=Flag())
    cors_origins: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    max_body_bytes: int = field(default=16 * 2**20, validator=Integer(ge=1024))
    max_open_requests: int = field(default=512, validator=Integer(ge=1))
    target_wait_s: float | None = field(default=30.0, validator=optional(Number(gt=0)))
    max_idle_connections: int = field(default=1024, validator=Integer(ge=1))
    max_connections_per_peer: int | None = field(default=None, validator=optional(Integer(ge=1)))
    header_timeout_s: float = field(default=10.0, validator=Number(gt=0))
    body_timeout_s: float = field(default=30.0, validator=Number(gt=0))
    request_timeout_s: float = field(default=600.0, validator=Number(gt=0))
    write_timeout_s: float = field(default=30.0, validator=Number(gt=0))
    drain_timeout_s: float = field(default=30.0, validator=Number(ge=0))
    log_requests: bool = field(default=False, validator=Flag())
    tracing: bool = field(default=False, validator=Flag())


TEMPLATE = """\
# The OpenAI-compatible server of `sage infer serve` (wheel sage-infer-serve).
serve:
  # Models to serve: names or paths, or mappings with additional settings, such as
  # {model: minilm, backend: openvino-embedding, aliases: [text-embedding-3-small], weight: 1, options: {}}. Keys:
  # model, model_id, backend, aliases, options, weight, device_ids, memory_fraction, and quant_profile (a file).
  # Empty: `model` and `embedding_model` of the section `inference`.
  models: []

  # How models share a device: time_slice (batch work alternates with streams), mps (simultaneously) or exclusive.
  sharing: time_slice

  # Address to listen on. API keys are required if others can reach it; port 0 selects a free port.
  host: 127.0.0.1
  port: 8000

  # File with digests of API keys, written by `sage infer key add NAME`; null: no API key required.
  keys_file: null

  # Reject unknown request fields by name, as OpenAI does; by default the header x-sage-ignored-fields names them.
  strict: false

  # Origins allowed by CORS, such as [https://chat.example.org]; "*" allows all. Empty: same origin only.
  cors_origins: []

  # Maximum body size in bytes, maximum concurrent requests (further ones get 429), maximum idle connections.
  max_body_bytes: 16777216
  max_open_requests: 512
  max_idle_connections: 1024

  # Maximum expected seconds until a response begins; above it, new requests get 429. null: no limit.
  target_wait_s: 30.0

  # Maximum connections per client address; null: three quarters of the total limit.
  max_connections_per_peer: null

  # Timeouts in seconds: headers, body, whole request, and waiting for open requests on shutdown.
  header_timeout_s: 10.0
  body_timeout_s: 30.0
  request_timeout_s: 600.0
  drain_timeout_s: 30.0

  # Seconds before a client that does not read its response is disconnected.
  write_timeout_s: 30.0

  # Log one line per request (never texts or keys).
  log_requests: false

  # OpenTelemetry traces by OTLP (pip install 'sage-infer-serve[otel]'); OTEL_EXPORTER_OTLP_ENDPOINT sets the
  # destination.
  tracing: false
"""
