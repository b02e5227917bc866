"""Plug-in of this wheel. Imports neither the reader of the vendor's tool nor vLLM."""

from sage_infer import BackendSpec, DetectorSpec, hookimpl
from sage_infer.sdk.platform_backends import PlatformBackends

from sage_infer_cambricon.needs import NEEDS

SAGE_INFER_CONTRACT = "1.0"

_NODES = ("/dev/cambricon_dev[0-9]*",)
_ON_VLLM = PlatformBackends(
    engine_plugin="sage_infer_vllm.plugin",
    requires={"sage-infer-vllm": ">=0.1,<0.2"},
    install="pip install 'sage-infer-cambricon[vllm]'",
    hardware="cambricon",
    needs=NEEDS,
    device_nodes=_NODES,
    limits=(
        "Not run on an MLU: detection is tested on recordings, the backend on CPU builds of vLLM under the vendor's "
        "names.",
        "vLLM 0.13 with vllm-mlu 0.13; older ones run vLLM's former engine.",
        "KV page sizes are not published; vLLM reports them when it starts.",
    ),
)


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="cambricon",
            factory="sage_infer_cambricon.detector:CambriconDetector",
            hardware={"cambricon"},
            device_nodes=_NODES,
            read_recording="sage_infer_cambricon.recordings:read",
            checks="sage_infer_cambricon.checks:CHECKS",
            summary="Cambricon MLUs through cnmon",
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        _ON_VLLM.spec(
            "vllm",
            name="cambricon",
            factory="sage_infer_cambricon.backend:CambriconBackend",
            serves={"llm"},
            summary="vLLM on Cambricon MLUs, through vllm-mlu",
        ),
        _ON_VLLM.spec(
            "vllm-embedding",
            name="cambricon-embedding",
            factory="sage_infer_cambricon.backend:CambriconEmbeddingBackend",
            serves={"embedding", "reranker"},
            summary="embedding and reranking with vLLM on Cambricon MLUs, through vllm-mlu",
        ),
    ]
