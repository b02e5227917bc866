"""Plug-in of the benchmark: the embedded engine, whose process crashes when a prompt has a certain text."""

from sage_infer import BackendSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="crashing-openvino",
            factory="failing.poison_engine:CrashingBackend",
            serves={"llm"},
            hardware={"cpu"},
            prepare="sage_infer_openvino.loading:prepare",
            memory="sage_infer_openvino.memory:decoder_memory",
            tokenizer="sage_infer_openvino.models.model_files:open_texts",
            summary="openvino, with a crash on demand",
            options={"kv_cache_gb": "see openvino", "threads": "see openvino"},
        )
    ]
