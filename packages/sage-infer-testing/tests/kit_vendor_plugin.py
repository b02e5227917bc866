"""The plug-in of the vendor in ``kit_vendor``."""

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
        BackendSpec(name="toy", factory="kit_vendor:ToyLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="my-engine", factory="kit_vendor:MyEngine", serves={"llm"}, summary="of the README"),
        BackendSpec(name="toy-forgetful", factory="kit_vendor:ForgetfulLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="toy-crashing", factory="kit_vendor:CrashingLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="toy-picky", factory="kit_vendor:PickyLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="toy-embedder", factory="kit_vendor:ToyEmbedder", serves={"embedding"}, summary="toy"),
        BackendSpec(name="toy-hybrid", factory="kit_vendor:ToyHybrid", serves={"hybrid"}, summary="toy"),
        BackendSpec(
            name="toy-missing", factory="kit_vendor:ToyLLM", serves={"llm"}, requires={"no-such-wheel-kit": ">=1"},
            summary="toy",
        ),
    ]  # fmt: skip


@hookimpl
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    return [
        KVStoreSpec(name="toy-store", factory="kit_vendor:open_store", summary="toy"),
        KVStoreSpec(name="toy-leaking", factory="kit_vendor:open_leaking_store", summary="toy"),
    ]


@hookimpl
def sage_infer_transports() -> list[TransportSpec]:
    return [
        TransportSpec(
            name="toy-files", factory="kit_vendor:open_transport", schemes={"file"}, summary="toy",
            endpoint="kit_reference.endpoint:ReferenceEndpoint",
        ),
        TransportSpec(name="toy-rdma", factory="kit_vendor:open_transport", schemes={"rdma"}, summary="toy"),
    ]  # fmt: skip


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="toy-eye",
            factory="kit_reference.detector:ReferenceDetector",
            hardware={"cpu"},
            summary="toy",
        )
    ]


@hookimpl
def sage_infer_executors() -> list[ExecutorSpec]:
    return [ExecutorSpec(name="toy-place", factory="kit_reference.executor:ReferenceExecutor", summary="toy")]


@hookimpl
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    return [
        KVFormatSpec(name="toy-form", factory="kit_vendor:ToyCodec", format_ids={"toy-2"}, summary="toy"),
        KVFormatSpec(name="toy-odd", factory="kit_vendor:ToyCodec", format_ids={"toy-?"}, summary="toy"),
    ]
