"""Settings of a gateway."""

from __future__ import annotations

from attrs import asdict, field, frozen
from sage_infer.sdk.fields import Flag

from sage_infer_serve.config import Serve

__all__ = ["GatewaySettings"]


@frozen(kw_only=True)
class GatewaySettings(Serve):
    """Settings of a gateway: the keys of the configuration's section ``serve`` and ``insecure``.

    The keys are documented in the configuration template. ``models`` and ``sharing`` have no effect on a gateway; they
    configure its backend.

    Attributes:
        insecure: allow access without API keys even if the address is reachable from other machines.
    """

    insecure: bool = field(default=False, validator=Flag())

    @classmethod
    def from_config(cls, config: Serve, *, insecure: bool = False) -> GatewaySettings:
        """Settings from the configuration's section ``serve``."""
        return cls(insecure=insecure, **asdict(config, recurse=False))
