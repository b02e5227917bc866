"""Plug-in with the reference backends of the contract kit, with backends that fail, and with transports."""

from __future__ import annotations

from sage_infer import BackendSpec, TransportSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(name="reference", factory="served_toys:make_llm", serves={"llm"}, summary="toy"),
        BackendSpec(name="words", factory="served_toys:make_embedder", serves={"embedding"}, summary="toy"),
        BackendSpec(name="full", factory="served_toys:Full", serves={"llm"}, summary="has no memory"),
        BackendSpec(name="crashing", factory="served_toys:Crashing", serves={"llm"}, summary="crashes"),
        BackendSpec(name="stuck", factory="served_toys:Stuck", serves={"llm"}, summary="never starts"),
        BackendSpec(name="parent", factory="served_toys:Parent", serves={"llm"}, summary="has a child"),
    ]


@hookimpl
def sage_infer_transports() -> list[TransportSpec]:
    pigeon, schemes = "served_toys:Pigeon", {"shm", "file"}
    return [
        TransportSpec(name="pigeon", factory=pigeon, schemes=schemes, endpoint="served_toys:Dovecote"),
        TransportSpec(name="paper", factory=pigeon, schemes=schemes),
        TransportSpec(name="ill", factory=pigeon, schemes=schemes, endpoint="served_toys:no_dovecote"),
    ]
