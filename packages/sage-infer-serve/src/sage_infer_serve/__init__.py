"""The OpenAI-compatible gateway of sage-infer, over any ``HybridInferenceBackend``."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["Gateway", "GatewaySettings", "RunningGateway", "running_gateway"]

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway
    from sage_infer_serve.server import RunningGateway, running_gateway
    from sage_infer_serve.settings import GatewaySettings

__getattr__ = lazy_exports(__name__, {
    "Gateway": "app", "GatewaySettings": "settings", "RunningGateway": "server", "running_gateway": "server",
})  # fmt: skip
