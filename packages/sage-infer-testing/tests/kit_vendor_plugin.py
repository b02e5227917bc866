"""The plug-in of the vendor in ``kit_vendor``."""

from sage_infer import BackendSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(name="toy", factory="kit_vendor:ToyLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="my-engine", factory="kit_vendor:MyEngine", serves={"llm"}, summary="of the README"),
        BackendSpec(name="toy-forgetful", factory="kit_vendor:ForgetfulLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="toy-crashing", factory="kit_vendor:CrashingLLM", serves={"llm"}, summary="toy"),
        BackendSpec(name="toy-embedder", factory="kit_vendor:ToyEmbedder", serves={"embedding"}, summary="toy"),
        BackendSpec(name="toy-hybrid", factory="kit_vendor:ToyHybrid", serves={"hybrid"}, summary="toy"),
        BackendSpec(
            name="toy-missing", factory="kit_vendor:ToyLLM", serves={"llm"}, requires={"no-such-wheel-kit": ">=1"},
            summary="toy",
        ),
    ]  # fmt: skip
