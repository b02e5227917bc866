"""What this wheel plugs in. Imports nothing but the specs."""

from sage_infer import hookimpl, specs

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[specs.BackendSpec]:
    return [
        specs.BackendSpec(
            name="hf",
            factory="sage_infer_hf.backend:HfBackend",
            serves={"llm"},
            hardware={"cpu"},
            requires={"torch": ">=2.6", "transformers": ">=4.51"},
            install="pip install 'sage-infer-hf[transformers]'",
            summary="Hugging Face transformers on PyTorch",
            limits=("Sampling is from the 256 likeliest tokens.", "A sequence is computed at a time."),
        ),
    ]
