"""The plug-in module: one hook for each kind of thing, and nothing heavy."""

from __future__ import annotations

from sage_infer import (
    BackendSpec,
    DetectorSpec,
    ExecutorSpec,
    KVFormatSpec,
    KVStoreSpec,
    TransportSpec,
    hookimpl,
)

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="quokka",
            factory="quokka_sage.backend:QuokkaBackend",
            serves={"llm"},
            hardware={"quokka", "cpu"},
            sizes="quokka_sage.model:sizes",
            memory="quokka_sage.model:memory",
            summary="character n-grams from .qk files",
            options={"max_queue": "requests that may be open before further ones are refused, 64 by default"},
            limits=("An n-gram model imitates its text; it answers no questions.",),
        ),
        BackendSpec(
            name="quokka-embedding",
            factory="quokka_sage.embedding:QuokkaEmbedding",
            serves={"embedding"},
            hardware={"quokka", "cpu"},
            sizes="quokka_sage.model:sizes",
            memory="quokka_sage.model:memory",
            summary="vectors of the letter triples in a text, weighted by a .qk file",
        ),
    ]


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="quokka",
            factory="quokka_sage.detector:QuokkaDetector",
            hardware={"quokka"},
            read_recording="quokka_sage.detector:read_recording",
            summary="devices in the output of quokka-smi",
        )
    ]


@hookimpl
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    return [KVStoreSpec(name="quokka", factory="quokka_sage.store:QuokkaStore", summary="blocks in memory")]


@hookimpl
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    return [
        KVFormatSpec(
            name="quokka",
            factory="quokka_sage.codec:HeadsFirst",
            format_ids={"quokka/heads-first-1"},
            summary="pages in the axis order (head, layer, kv, token, dim)",
        )
    ]


@hookimpl
def sage_infer_transports() -> list[TransportSpec]:
    return [
        TransportSpec(
            name="quokka", factory="quokka_sage.transport:QuokkaTransport", schemes={"file"}, summary="files"
        )
    ]


@hookimpl
def sage_infer_executors() -> list[ExecutorSpec]:
    return [
        ExecutorSpec(
            name="quokka", factory="quokka_sage.executor:QuokkaExecutor", summary="replicas in this process"
        )
    ]
