"""What a gateway can be told."""

from __future__ import annotations

from attrs import asdict, field, frozen
from sage_infer.sdk.fields import Flag

from sage_infer_serve.config import Serve

__all__ = ["GatewaySettings"]


@frozen(kw_only=True)
class GatewaySettings(Serve):
    """Settings of a gateway: the keys of the configuration's section ``serve``, explained there, and one more.

    ``models`` and ``sharing`` say what stands behind a gateway, which does not look at them.

    Attributes:
        insecure: whether a host that others can reach may be served without keys.
    """

    insecure: bool = field(default=False, validator=Flag())

    @classmethod
    def from_config(cls, config: Serve, *, insecure: bool = False) -> GatewaySettings:
        """The settings in the configuration's section ``serve``."""
        return cls(insecure=insecure, **asdict(config, recurse=False))
