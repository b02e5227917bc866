"""What this wheel plugs in. Imports nothing but the specs."""

from sage_infer import BackendSpec, ModelSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="ngram",
            factory="ngram_sage.backend:NgramBackend",
            serves={"llm"},
            hardware={"cpu"},
            sizes="ngram_sage.model:sizes",
            summary="n-gram model of bytes, counted from a text when it is opened",
            options={"order": "longest context in bytes, 8 by default"},
            limits=("It continues text in the manner of what it has read, and knows nothing.",),
        )
    ]


@hookimpl
def sage_infer_models() -> list[ModelSpec]:
    summary = "a short story about a lighthouse, to count n-grams in"
    resolver = "ngram_sage.model:find"
    return [ModelSpec(name="ngram-lighthouse", model_type="llm", resolver=resolver, summary=summary)]
