"""The ``server`` of replicas on other machines: frames over TCP, for clients that know the replica's token."""

from __future__ import annotations

import os
from typing import Any

import attrs
from sage_infer.contracts import HOST_VARIABLE
from sage_infer.errors import ConfigError
from sage_infer.schemas import ReplicaSpec

from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.replicas.server import ReplicaServer, describe, register
from sage_llm.replicas.spans import export_spans

__all__ = ["NETWORK_SERVER", "serve"]

NETWORK_SERVER = "sage_llm.replicas.net.server:serve"


async def serve(backend: Any, spec: ReplicaSpec) -> str:
    """Serve a started backend at a free port of the machine's address; the ``server`` of a ``ReplicaSpec``.

    The spec's environment has the token of the replica. The executor sets ``SAGE_REPLICA_HOST`` to the address at which
    the control plane reaches the machine; by default, only the machine itself does.

    Returns:
        The address, such as ``tcp://10.0.0.5:40123``.

    Raises:
        ConfigError: there is no token.
    """
    token = spec.environment.get(TOKEN_VARIABLE)
    if not token:
        raise ConfigError(
            f"replica {spec.replica_id!r} has no token for its clients; set {TOKEN_VARIABLE} in its environment"
        )
    export_spans()
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    server = ReplicaServer(backend, describe(backend, spec, ""))
    port = await server.start_tcp(host, token)
    address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    server.descriptor = attrs.evolve(server.descriptor, addresses=(address,))
    register(address, server)
    return address
