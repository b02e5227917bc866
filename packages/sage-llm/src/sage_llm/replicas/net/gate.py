"""Proof of a shared token at both ends of a TCP connection, before its first frame.

The server sends 32 random bytes. The client answers with 32 random bytes of its own and the HMAC-SHA256 of both under
the token; the server answers with an HMAC of the same bytes for the other direction. The token itself does not travel.
What follows is neither encrypted nor signed.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from typing import cast

from sage_llm.replicas.link import Link

__all__ = ["TOKEN_VARIABLE", "Gate", "Knock"]

TOKEN_VARIABLE = "SAGE_REPLICA_TOKEN"
"""Environment variable of a replica's spec with the token that its clients must know."""

PROOF_S = 10.0
_BYTES = 32


class Gate(asyncio.Protocol):
    """The server's end: the protocol ``opened()`` gets the connection when the peer has proved the token.

    A peer that does not is disconnected, after ``proof_s`` seconds if it says nothing.
    """

    def __init__(
        self, token: str, opened: Callable[[], asyncio.Protocol], *, proof_s: float = PROOF_S
    ) -> None:
        self._token, self._opened, self._proof_s = token, opened, proof_s
        self._received = bytearray()
        self._challenge = secrets.token_bytes(_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._proof_s, self._transport.abort)
        self._transport.write(self._challenge)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < 2 * _BYTES:
            return
        self._timer.cancel()
        own, proof = bytes(self._received[:_BYTES]), bytes(self._received[_BYTES : 2 * _BYTES])
        if not hmac.compare_digest(proof, _proof(self._token, b"client", self._challenge, own)):
            self._transport.abort()
            return
        self._transport.write(_proof(self._token, b"server", self._challenge, own))
        _hand_over(self._transport, self._opened(), bytes(self._received[2 * _BYTES :]))

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()


class Knock(asyncio.Protocol):
    """The client's end: ``link`` gets the connection when both ends have proved the token.

    If the server does not, or says nothing for ``proof_s`` seconds, the link is lost.
    """

    def __init__(self, token: str, link: Link, *, proof_s: float = PROOF_S) -> None:
        self._token, self._link, self._proof_s = token, link, proof_s
        self._received = bytearray()
        self._own = secrets.token_bytes(_BYTES)
        self._challenge = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._proof_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._challenge and len(self._received) >= _BYTES:
            self._challenge = bytes(self._received[:_BYTES])
            del self._received[:_BYTES]
            self._transport.write(self._own + _proof(self._token, b"client", self._challenge, self._own))
        if self._challenge and len(self._received) >= _BYTES:
            proof = bytes(self._received[:_BYTES])
            if not hmac.compare_digest(proof, _proof(self._token, b"server", self._challenge, self._own)):
                self._link.abort("another program answers there: it does not know the replica's token")
                self._transport.abort()
                return
            self._timer.cancel()
            _hand_over(self._transport, self._link, bytes(self._received[_BYTES:]))

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._link.abort("it refused the token of this control plane, or has ended")
        self._link.connection_lost(error)


def _proof(token: str, side: bytes, challenge: bytes, own: bytes) -> bytes:
    return hmac.digest(token.encode(), side + challenge + own, "sha256")


def _hand_over(transport: asyncio.Transport, protocol: asyncio.Protocol, rest: bytes) -> None:
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if rest:
        protocol.data_received(rest)
