"""What a gateway can be told."""

from __future__ import annotations

from attrs import field, fields, frozen
from sage_infer.checks import Each, Flag, Integer, Number, Text, as_tuple, optional
from sage_infer.config import Serve

__all__ = ["GatewaySettings"]


@frozen(kw_only=True)
class GatewaySettings:
    """Settings of a gateway; all but ``insecure`` are keys of the configuration's section ``serve``, explained there.

    Attributes:
        insecure: whether a host that others can reach may be served without keys.
    """

    host: str = field(default="127.0.0.1", validator=Text(min_length=1))
    port: int = field(default=8000, validator=Integer(ge=0, le=65535))
    keys_file: str | None = field(default=None, validator=optional(Text(min_length=1)))
    insecure: bool = field(default=False, validator=Flag())
    strict: bool = field(default=False, validator=Flag())
    cors_origins: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    max_body_bytes: int = field(default=16 * 2**20, validator=Integer(ge=1024))
    max_open_requests: int = field(default=512, validator=Integer(ge=1))
    max_idle_connections: int = field(default=1024, validator=Integer(ge=1))
    header_timeout_s: float = field(default=10.0, validator=Number(gt=0))
    body_timeout_s: float = field(default=30.0, validator=Number(gt=0))
    request_timeout_s: float = field(default=600.0, validator=Number(gt=0))
    drain_timeout_s: float = field(default=30.0, validator=Number(ge=0))
    log_requests: bool = field(default=False, validator=Flag())
    tracing: bool = field(default=False, validator=Flag())

    @classmethod
    def from_config(cls, config: Serve, *, insecure: bool = False) -> GatewaySettings:
        """The settings in the configuration's section ``serve``."""
        names = {f.name for f in fields(cls)} - {"insecure"}
        return cls(insecure=insecure, **{name: getattr(config, name) for name in names})
