"""The plug-in module: one hook for each kind of thing, and nothing heavy."""

from sage_infer import hookimpl, specs

SAGE_INFER_CONTRACT = "1.0"
OWN_FORMAT = {"sizes": "quokka_sage.model:sizes", "memory": "quokka_sage.model:memory"}


@hookimpl
def sage_infer_backends() -> list[specs.BackendSpec]:
    return [
        specs.BackendSpec(
            name="quokka",
            factory="quokka_sage.backend:QuokkaBackend",
            serves={"llm"},
            hardware={"quokka", "cpu"},
            summary="character n-grams from .qk files",
            options={"max_queue": "requests that may be open before further ones are refused, 64 by default"},
            limits=("An n-gram model imitates its text; it answers no questions.",),
            **OWN_FORMAT,
        ),
        specs.BackendSpec(
            name="quokka-embedding",
            factory="quokka_sage.embedding:QuokkaEmbedding",
            serves={"embedding"},
            hardware={"quokka", "cpu"},
            summary="vectors of the letter triples in a text, weighted by a .qk file",
            **OWN_FORMAT,
        ),
    ]


@hookimpl
def sage_infer_detectors() -> list[specs.DetectorSpec]:
    spec = specs.DetectorSpec(
        name="quokka",
        factory="quokka_sage.detector:QuokkaDetector",
        hardware={"quokka"},
        read_recording="quokka_sage.detector:read_recording",
        summary="devices in the output of quokka-smi",
    )
    return [spec]


@hookimpl
def sage_infer_kv_stores() -> list[specs.KVStoreSpec]:
    factory = "quokka_sage.store:QuokkaStore"
    return [specs.KVStoreSpec(name="quokka", factory=factory, summary="blocks in memory")]


@hookimpl
def sage_infer_kv_formats() -> list[specs.KVFormatSpec]:
    factory, ids = "quokka_sage.codec:HeadsFirst", {"quokka/heads-first-1"}
    return [specs.KVFormatSpec(name="quokka", factory=factory, format_ids=ids, summary="pages by head")]


@hookimpl
def sage_infer_transports() -> list[specs.TransportSpec]:
    factory = "quokka_sage.transport:QuokkaTransport"
    return [specs.TransportSpec(name="quokka", factory=factory, schemes={"file"}, summary="files")]


@hookimpl
def sage_infer_executors() -> list[specs.ExecutorSpec]:
    factory = "quokka_sage.executor:QuokkaExecutor"
    return [specs.ExecutorSpec(name="quokka", factory=factory, summary="replicas in this process")]


@hookimpl
def sage_infer_config() -> list[specs.ConfigSpec]:
    settings, template = "quokka_sage.settings:QuokkaSettings", "quokka_sage.settings:TEMPLATE"
    return [specs.ConfigSpec(name="quokka", settings=settings, template=template)]
