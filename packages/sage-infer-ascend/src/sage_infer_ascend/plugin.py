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
        "Not run on an NPU: detection is tested on recordings, the backend up to the call of vLLM.",
        "The adapter, sage-infer-vllm, supports vLLM 0.28 to 0.32; vllm-ascend requires vLLM 0.18 to 0.26: "
        "until the ranges meet, opening the backend raises BackendUnavailable, which names the missing parts.",
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
