"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import BackendSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="hybrid",
            factory="sage_infer_hybrid.backend:HybridBackend",
            serves={"hybrid"},
            hardware={"cpu"},
            summary="LLM, embedding and reranker on shared devices, each on any installed backend",
            options={
                "llm_config": "the LLM: a name, or a mapping with model_id, backend, aliases, options, weight, "
                "device_ids, memory_fraction, quant_profile",
                "embedding_config": "the embedding model, in the same format",
                "reranker_config": "the reranker, in the same format",
                "models": "a list of additional models, in the same format",
                "sharing_mode": "time_slice (default), mps or exclusive",
            },
            limits=(
                "Compute is shared between models by slicing batch work; engines themselves are not preempted.",
                "A loaded model keeps its KV cache, which does not shrink for models loaded later.",
            ),
        )
    ]
