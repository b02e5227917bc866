"""What this wheel brings to sage-infer. Imports neither the reader of the vendor's tool nor vLLM."""

from sage_infer import BackendSpec, DetectorSpec, hookimpl
from sage_infer.specs import options_of

from sage_infer_hygon.needs import NEEDS

SAGE_INFER_CONTRACT = "1.0"

# /dev/kfd is AMD's too; devices bound to a driver of Hygon are its own.
_NODES = ("/sys/bus/pci/drivers/hycu/*:*", "/sys/bus/pci/drivers/hydcu/*:*", "/dev/mkfd")
_ADAPTER = {"sage-infer-vllm": ">=0.1,<0.2"}
_INSTALL = "pip install 'sage-infer-hygon[vllm]'"
_LIMITS = (
    "Not run on a DCU: detection is tested on recordings, the backend up to the call of vLLM.",
    "The adapter, sage-infer-vllm, is written for vLLM 0.28 to 0.32; Hygon's build is of vLLM 0.18: "
    "opening the backend ends with BackendUnavailable, which names what that vLLM lacks, until they meet.",
    "Its metadata does not tell Hygon's build of vLLM or torch from any other: that shows when it starts.",
    "Quantization methods, KV dtypes, KV connectors and page sizes are not published; vLLM is asked when it starts.",
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
            summary="Hygon DCUs through hy-smi",
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="hygon",
            factory="sage_infer_hygon.backend:HygonBackend",
            serves={"llm"},
            hardware={"hygon"},
            requires=_ADAPTER,
            install=_INSTALL,
            needs=NEEDS,
            device_nodes=_NODES,
            prepare="sage_infer_vllm.models.prepare:prepare",
            memory="sage_infer_vllm.models.memory:engine_memory",
            summary="Hygon's build of vLLM on DCUs",
            options=options_of("sage_infer_vllm.plugin", "vllm"),
            limits=_LIMITS,
        ),
        BackendSpec(
            name="hygon-embedding",
            factory="sage_infer_hygon.backend:HygonEmbeddingBackend",
            serves={"embedding", "reranker"},
            hardware={"hygon"},
            requires=_ADAPTER,
            install=_INSTALL,
            needs=NEEDS,
            device_nodes=_NODES,
            memory="sage_infer_vllm.models.memory:engine_memory",
            summary="embedding and reranking with Hygon's build of vLLM on DCUs",
            options=options_of("sage_infer_vllm.plugin", "vllm-embedding"),
            limits=_LIMITS,
        ),
    ]
