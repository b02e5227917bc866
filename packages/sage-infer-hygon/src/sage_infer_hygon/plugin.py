"""Plug-in of this wheel. Imports neither the reader of the vendor's tool nor vLLM."""

from sage_infer import BackendSpec, DetectorSpec, hookimpl
from sage_infer.sdk.platform_backends import PlatformBackends

from sage_infer_hygon.needs import NEEDS

SAGE_INFER_CONTRACT = "1.0"

# /dev/kfd is AMD's too; devices bound to a driver of Hygon are its own.
_NODES = ("/sys/bus/pci/drivers/hycu/*:*", "/sys/bus/pci/drivers/hydcu/*:*", "/dev/mkfd")
_ON_VLLM = PlatformBackends(
    engine_plugin="sage_infer_vllm.plugin",
    requires={"sage-infer-vllm": ">=0.1,<0.2"},
    install="pip install 'sage-infer-hygon[vllm]'",
    hardware="hygon",
    needs=NEEDS,
    device_nodes=_NODES,
    limits=(
        "Not run on a DCU: detection is tested on recordings, the backend on CPU builds of vLLM under the vendor's "
        "names.",
        "Hygon's build of vLLM 0.18, recognized by +das in its version.",
        "KV dtypes, KV connectors and page sizes are not published; vLLM reports them at start.",
    ),
)


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="hygon",
            factory="sage_infer_hygon.detector:HygonDetector",
            hardware={"hygon"},
            device_nodes=_NODES,
            read_recording="sage_infer_hygon.recordings:read",
            checks="sage_infer_hygon.checks:CHECKS",
            summary="Hygon DCUs through hy-smi",
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        _ON_VLLM.spec(
            "vllm",
            name="hygon",
            factory="sage_infer_hygon.backend:HygonBackend",
            serves={"llm"},
            summary="Hygon's build of vLLM on DCUs",
        ),
        _ON_VLLM.spec(
            "vllm-embedding",
            name="hygon-embedding",
            factory="sage_infer_hygon.backend:HygonEmbeddingBackend",
            serves={"embedding", "reranker"},
            summary="embedding and reranking with Hygon's build of vLLM on DCUs",
        ),
    ]
