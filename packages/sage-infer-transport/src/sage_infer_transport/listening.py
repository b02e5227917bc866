"""The listening socket of an endpoint, and the address that it is reached at."""

from __future__ import annotations

import socket

from sage_infer.errors import InvalidRequest

__all__ = ["listen"]


def listen(scheme: str, host: str, port: int, advertise: str | None) -> tuple[socket.socket, str]:
    """Listen on an address; returns the socket and ``SCHEME://HOST:PORT``, with ``advertise`` as host if given.

    Raises:
        InvalidRequest: the address is not available, or ``advertise`` is missing for an address of all interfaces.
    """
    if advertise is None and host in ("", "0.0.0.0", "::"):
        raise InvalidRequest(
            f"advertise is required with host {host!r}: the name that other hosts connect to"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    name = advertise or host
    return server, f"{scheme}://{f'[{name}]' if ':' in name else name}:{server.getsockname()[1]}"
