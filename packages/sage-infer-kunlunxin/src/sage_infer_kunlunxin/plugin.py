"""Plug-in of this wheel. Imports neither the reader of the vendor's tool nor vLLM."""

from sage_infer import BackendSpec, DetectorSpec, hookimpl
from sage_infer.sdk.platform_backends import PlatformBackends

from sage_infer_kunlunxin.needs import NEEDS

SAGE_INFER_CONTRACT = "1.0"

_NODES = ("/dev/xpu[0-9]*",)
_ON_VLLM = PlatformBackends(
    engine_plugin="sage_infer_vllm.plugin",
    requires={"sage-infer-vllm": ">=0.1,<0.2"},
    install="pip install 'sage-infer-kunlunxin[vllm]'",
    hardware="kunlunxin",
    needs=NEEDS,
    device_nodes=_NODES,
    limits=(
        "Not run on an XPU: detection is tested on recordings, the backend on CPU builds of vLLM under the vendor's "
        "names.",
        "vLLM 0.15.1 with vllm-kunlun 0.15.1; prefixes are not cached by default, as in the vendor's guides.",
        "torch_xmlir, the bridge that vllm-kunlun runs on, is not checked: it is part of the vendor's image.",
        "KV connectors are not published; vLLM reports them when it starts.",
    ),
)


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="kunlunxin",
            factory="sage_infer_kunlunxin.detector:KunlunxinDetector",
            hardware={"kunlunxin"},
            device_nodes=_NODES,
            read_recording="sage_infer_kunlunxin.recordings:read",
            checks="sage_infer_kunlunxin.checks:CHECKS",
            summary="Kunlunxin XPUs through xpu-smi",
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        _ON_VLLM.spec(
            "vllm",
            name="kunlunxin",
            factory="sage_infer_kunlunxin.backend:KunlunxinBackend",
            serves={"llm"},
            summary="vLLM on Kunlunxin XPUs, through vllm-kunlun",
        ),
        _ON_VLLM.spec(
            "vllm-embedding",
            name="kunlunxin-embedding",
            factory="sage_infer_kunlunxin.backend:KunlunxinEmbeddingBackend",
            serves={"embedding", "reranker"},
            summary="embedding and reranking with vLLM on Kunlunxin XPUs, through vllm-kunlun",
        ),
    ]
