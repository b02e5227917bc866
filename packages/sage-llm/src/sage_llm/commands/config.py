"""The section ``llm`` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.sdk.fields import Each, Flag, Integer, Json, Number, Text, as_tuple

__all__ = ["LLM", "TEMPLATE"]


@frozen(kw_only=True)
class LLM:
    """Settings of ``sage llm serve``: models, replicas, policies and failures."""

    models: tuple[Any, ...] = field(default=(), converter=as_tuple, validator=Each(Json()))
    replicas: int = field(default=1, validator=Integer(ge=1))
    autoscale: Mapping[str, Any] = field(factory=dict, validator=Json())
    pd: str = field(default="", validator=Text())
    kv_transport: str = field(default="local", validator=Text(min_length=1))
    policy: str = field(default="kv-cost", validator=Text(min_length=1))
    order: str = field(default="balanced", validator=Text(min_length=1))
    join: tuple[Any, ...] = field(default=(), converter=as_tuple, validator=Each(Json()))
    share_cpus: bool = field(default=True, validator=Flag())
    executor: str = field(default="local", validator=Text(min_length=1))
    executor_options: Mapping[str, Any] = field(factory=dict, validator=Json())
    gateways: int = field(default=1, validator=Integer(ge=1))
    max_migrations: int = field(default=3, validator=Integer(ge=0))
    instance_wait_s: float = field(default=60.0, validator=Number(gt=0))
    suspect_s: float = field(default=0.75, validator=Number(gt=0))
    lost_s: float = field(default=2.0, validator=Number(gt=0))
    stuck_s: float = field(default=10.0, validator=Number(gt=0))
    revive_s: float = field(default=10.0, validator=Number(gt=0))
    restart_pause_s: float = field(default=1.0, validator=Number(gt=0))
    max_early_failures: int = field(default=5, validator=Integer(ge=1))
    tenants: Mapping[str, Any] = field(factory=dict, validator=Json())
    quotas: Mapping[str, Any] = field(factory=dict, validator=Json())
    drain_s: float = field(default=1.0, validator=Number(ge=0))
    outlive_s: float = field(default=30.0, validator=Number(ge=0))
    batch_tokens: int = field(default=2048, validator=Integer(ge=1))
    batch_window_ms: float = field(default=5.0, validator=Number(ge=0))


TEMPLATE = """\
# The control plane of `sage llm serve` (wheel sage-llm). Address, keys and limits of its API: section `serve`.
llm:
  # Models to serve: names or paths, or mappings such as {model: minilm, type: embedding, backend: openvino-embedding,
  # replicas: 2, aliases: [text-embedding-3-small], options: {}}. Keys: model, model_id, type, backend, replicas,
  # autoscale, aliases, options, prefill_options (of the replicas that `pd` starts for prompts); for an executor on a
  # cluster also cpus, gpus and memory_gb of each replica. Empty: `model` of the section `inference`.
  models: []

  # Replicas of each generating model that does not set its own number.
  replicas: 1

  # Let the number of replicas of each generating model follow its load, instead of `replicas`: {min: 0, max: 4}.
  # Keys: min, max; target (0.7), high (0.85) and low (0.45): load of a replica after a change, above which some are
  # added, below which some are stopped; ttft_s (2): wait for the first token above which some are added; up_s (5),
  # down_s (300): how long that must last; idle_s (300): time without a request after which the minimum remains;
  # smooth_s (10): smoothing of the load; interval_s (1): time between decisions; deadline_s (600): a replica that is
  # not ready by then is given up; wait_s (60): time that a request waits for the first replica; requests (0: the batch
  # of the engine): sequences per replica; cost_per_hour (0) of a replica, budget_per_hour (0: no limit) of the model.
  autoscale: {}

  # Replicas that compute prompts and replicas that generate, for each generating model: P:D, such as 1:1. Empty: each
  # replica does both. Requires the policy pd, which is then the default.
  pd: ""

  # How KV moves between them: an installed transport, such as local (shared memory of this machine), tcp, or nixl
  # (wheel sage-infer-nixl); or store (the KV store of their option kv_store). Settings of transports: section
  # `transport`.
  kv_transport: local

  # Choice of the instance for a request, and order of requests that wait.
  policy: kv-cost
  order: balanced

  # OpenAI-compatible servers whose models are further replicas: URLs, or mappings such as
  # {url: "https://host/v1", api_key_env: NAME, type: embedding}. api_key_env: environment variable with the API key;
  # type: type of models that do not report one.
  join: []

  # Divide the CPUs of this machine among the replicas of engines with an option `threads`.
  share_cpus: true

  # Where replicas run: local (this machine), or the name of an installed executor, such as ray (wheel sage-infer-ray).
  # Options of the executor: for ray, address and namespace of the cluster, and place_s.
  executor: local
  executor_options: {}

  # Processes that answer requests at the same address. With more than one, each has its own view of the replicas. They
  # exchange what API keys have used of their limits; quotas of tenants apply to each of them with its part.
  gateways: 1

  # Maximum number of moves of one request, and seconds that it waits while all instances are lost or restarting.
  max_migrations: 3
  instance_wait_s: 60.0

  # Seconds without a report until an instance gets no new requests, until its requests move, and until it is killed.
  suspect_s: 0.75
  lost_s: 2.0
  revive_s: 10.0

  # Seconds without an engine step, although requests run, until an instance gets no new requests; after twice that,
  # it is killed.
  stuck_s: 10.0

  # Seconds before a replica that ended is started again (doubled with each early failure), and the number of early
  # failures in ten minutes after which it is not.
  restart_pause_s: 1.0
  max_early_failures: 5

  # Seconds that requests have to end on a replica that is drained; then they move.
  drain_s: 1.0

  # Seconds that replicas in processes of their own wait for the next control plane, after this one was killed.
  outlive_s: 30.0

  # Quotas of tenants by the name of their API key; "*" is for each tenant without one. Keys: max_requests and
  # max_kv_tokens (further requests get 429), reserved_requests and reserved_kv_tokens (left free by others, for each
  # model), weight (share of service). Example: {gold: {weight: 3, reserved_requests: 2}, "*": {max_requests: 16}}.
  tenants: {}

  # Quotas of KV in tokens, by tenant, below it by model, and below that by service class (`default` for requests that
  # name none); "*" is for each without one. Keys: reserved (lent to others until it is needed, then taken back by
  # pausing their requests), ceiling (further requests wait), borrow (whether its requests may use what is reserved for
  # others; true by default), models, classes. Example:
  # {gold: {reserved: 8192, models: {smollm2-135m: {classes: {batch: {ceiling: 2048}}}}}, "*": {ceiling: 16384}}.
  quotas: {}

  # Embedding and reranking requests that wait together are sent in one batch: its number of tokens, and the
  # milliseconds for which it waits for further requests while the instance computes another one.
  batch_tokens: 2048
  batch_window_ms: 5.0
"""
