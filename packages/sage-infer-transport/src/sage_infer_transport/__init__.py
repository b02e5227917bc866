"""KV transports over shared memory, files and TCP, the endpoints that they join, and the hand-over of requests."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "LocalTransport", "SharedMemoryEndpoint", "TCPEndpoint", "TCPTransport", "fetch_state", "plan_transfer",
    "publish_state", "withdraw_state",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer_transport.hand_over import fetch_state, publish_state, withdraw_state
    from sage_infer_transport.local import LocalTransport
    from sage_infer_transport.planner import plan_transfer
    from sage_infer_transport.shared_memory import SharedMemoryEndpoint
    from sage_infer_transport.tcp.endpoint import TCPEndpoint
    from sage_infer_transport.tcp.transport import TCPTransport

__getattr__ = lazy_exports(__name__, {
    "LocalTransport": "local", "SharedMemoryEndpoint": "shared_memory", "TCPEndpoint": "tcp.endpoint",
    "TCPTransport": "tcp.transport", "fetch_state": "hand_over", "plan_transfer": "planner",
    "publish_state": "hand_over", "withdraw_state": "hand_over",
})  # fmt: skip
