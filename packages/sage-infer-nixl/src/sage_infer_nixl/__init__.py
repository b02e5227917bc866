"""KV transport over NIXL and UCX, and the endpoint that it joins."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["NIXLEndpoint", "NIXLTransport"]

if TYPE_CHECKING:
    from sage_infer_nixl.endpoint import NIXLEndpoint
    from sage_infer_nixl.transport import NIXLTransport

__getattr__ = lazy_exports(__name__, {"NIXLEndpoint": "endpoint", "NIXLTransport": "transport"})
