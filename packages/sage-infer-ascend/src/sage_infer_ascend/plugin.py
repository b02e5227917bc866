"""Plug-in of this wheel. Imports neither the reader of the vendor's tool nor vLLM."""

from sage_infer import BackendSpec, DetectorSpec, hookimpl
from sage_infer.sdk.platform_backends import PlatformBackends

from sage_infer_ascend.needs import NEEDS

SAGE_INFER_CONTRACT = "1.0"

_NODES = ("/dev/davinci[0-9]*",)
_ON_VLLM = PlatformBackends(
    engine_plugin="sage_infer_vllm.plugin",
    requires={"sage-infer-vllm": ">=0.1,<0.2"},
    install="pip install 'sage-infer-ascend[vllm]'",
    hardware="ascend",
    needs=NEEDS,
    device_nodes=_NODES,
    limits=(
        "Not run on an NPU: detection is tested on recordings, the backend on CPU builds of vLLM under the vendor's "
        "names.",
        "vLLM 0.13, 0.18, 0.23 or 0.26, with vllm-ascend of the same release.",
        "kv_cache_gb with vllm-ascend 0.23 or newer; older ones ignore it, so it is refused.",
        "int8 KV (C8) only with a checkpoint quantized for it.",
    ),
)


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="ascend",
            factory="sage_infer_ascend.detector:AscendDetector",
            hardware={"ascend"},
            device_nodes=_NODES,
            read_recording="sage_infer_ascend.recordings:read",
            checks="sage_infer_ascend.checks:CHECKS",
            summary="Huawei Ascend NPUs through npu-smi",
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        _ON_VLLM.spec(
            "vllm",
            name="ascend",
            factory="sage_infer_ascend.backend:AscendBackend",
            serves={"llm"},
            summary="vLLM on Huawei Ascend NPUs, through vllm-ascend",
        ),
        _ON_VLLM.spec(
            "vllm-embedding",
            name="ascend-embedding",
            factory="sage_infer_ascend.backend:AscendEmbeddingBackend",
            serves={"embedding", "reranker"},
            summary="embedding and reranking with vLLM on Huawei Ascend NPUs, through vllm-ascend",
        ),
    ]
