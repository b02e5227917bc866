"""Options of a request: priority, deadline, tenant, latency targets, and reuse of its KV."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from sage_infer.checks import Entries, Instance, Integer, Number, Text, optional
from sage_infer.schemas.base import schema

__all__ = ["SLO", "RequestOptions", "Retention"]


@schema("1.0")
@frozen(kw_only=True)
class SLO:
    """Latency targets of a request.

    Attributes:
        ttft_s: time to first token, in seconds.
        tpot_s: time per output token after the first, in seconds.
    """

    ttft_s: float | None = field(default=None, validator=optional(Number(gt=0)))
    tpot_s: float | None = field(default=None, validator=optional(Number(gt=0)))


@schema("1.0")
@frozen(kw_only=True)
class Retention:
    """Retention value of a request's KV after the request has ended.

    Attributes:
        value: value of the KV relative to that of other requests; KV with value 0 is evicted first.
        half_life_s: half-life of the value in seconds; null keeps it constant.
    """

    value: float = field(default=1.0, validator=Number(ge=0))
    half_life_s: float | None = field(default=None, validator=optional(Number(gt=0)))


@schema("1.0")
@frozen(kw_only=True)
class RequestOptions:
    """Options of one request, accepted by ``generate``, ``chat``, ``prefill``, ``decode``, ``resume``,
    ``embed`` and ``rerank``.

    All fields are optional. For each field that it supports, a backend claims the feature of the same name. It
    refuses requests that set other fields (``UnsupportedFeature``). Later versions only add optional fields.

    Attributes:
        priority: requests with smaller numbers are scheduled first.
        deadline: seconds from now until the request ends with ``RequestCancelled`` (by ``deadline``).
        tenant: tenant that sends the request, for quotas and fairness.
        session: conversation that the request belongs to.
        service_class: name of a service class, such as interactive or batch.
        slo: latency targets.
        chain: name of the chain of calls that the request belongs to (retrieve, rerank, generate).
        cache_salt: only requests with equal salts share KV.
        retention: retention value of the request's KV after its end.
        trace: W3C trace context (``traceparent``, ``tracestate``).
    """

    priority: int = field(default=0, validator=Integer())
    deadline: float | None = field(default=None, validator=optional(Number()))
    tenant: str = field(default="", validator=Text())
    session: str = field(default="", validator=Text())
    service_class: str = field(default="", validator=Text())
    slo: SLO | None = field(default=None, validator=optional(Instance(SLO)))
    chain: str = field(default="", validator=Text())
    cache_salt: str = field(default="", validator=Text())
    retention: Retention | None = field(default=None, validator=optional(Instance(Retention)))
    trace: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
