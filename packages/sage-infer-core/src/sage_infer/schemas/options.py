"""What a caller says about a request besides its content: how urgent it is, whose it is, what may share its
KV.
"""

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
    """How much the KV of a request is worth once the request has ended.

    Attributes:
        value: worth of keeping it, relative to other requests' KV; 0 lets it go first.
        half_life_s: seconds after which the value has halved; null keeps it constant.
    """

    value: float = field(default=1.0, validator=Number(ge=0))
    half_life_s: float | None = field(default=None, validator=optional(Number(gt=0)))


@schema("1.0")
@frozen(kw_only=True)
class RequestOptions:
    """Options of one request, taken by ``generate``, ``chat``, ``prefill``, ``decode``, ``resume``,
    ``embed`` and ``rerank``.

    All are optional. A backend claims a feature of the same name as the field for each that it honours, and
    refuses the others where they are set (``UnsupportedFeature``). Later versions add optional fields only.

    Attributes:
        priority: smaller goes first.
        deadline: seconds from now, after which the request ends with ``RequestCancelled`` (by ``deadline``).
        tenant: whose request it is, for quotas and fairness.
        session: conversation that the request is a turn of.
        service_class: name of a class of service, such as interactive or batch.
        slo: latency targets.
        chain: name of the chain of calls that it is a part of (retrieve, rerank, generate).
        cache_salt: only requests of equal salt share KV.
        retention: worth of the request's KV after its end.
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
