"""Plug-in of this wheel. Does not import the engine."""

from sage_infer import BackendSpec, KVFormatSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_REQUIRES = {"openvino": ">=2026.4"}


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="openvino",
            factory="sage_infer_openvino.backend:OpenVINOBackend",
            serves={"llm"},
            hardware={"cpu"},
            requires=_REQUIRES,
            prepare="sage_infer_openvino.loading:prepare",
            memory="sage_infer_openvino.memory:decoder_memory",
            tokenizer="sage_infer_openvino.models.model_files:open_texts",
            summary="embedded engine: paged KV and continuous batching on OpenVINO kernels",
            options={
                "weight_format": "int8 (default; keeps 4- and 8-bit blocks of a file), int4, exact, bf16 or f32",
                "precision": "f32 (default; results do not depend on the batch), bf16 or f16 if the device supports it",
                "kv_precision": "f32, bf16, f16 or u8; default: precision",
                "kv_schema": "{preset: fp16, bf16 or int8}, set by --kv-schema; alternative to kv_precision",
                "dynamic_quantization": "round activations to 8 bits before products with quantized weights, false by "
                "default; faster on CPUs with VNNI, no effect on others",
                "kv_cache_gb": "size of the KV cache in GiB, 1.0 by default",
                "max_batch_size": "maximum concurrent sequences, 32 by default",
                "max_sequence_length": "prompt and output in tokens; default: the model's limit",
                "max_queue": "maximum open requests, 1024 by default",
                "hold_s": "seconds to keep the KV of a prefilled request for decode, 600 by default",
                "step_tokens": "token budget per step, 512 by default; smaller is fairer, larger is faster",
                "decode_slowdown": "maximum slowdown of steps by prompts while outputs are streamed, 2.5 by default",
                "prefix_caching": "cache blocks of finished requests for prompts with the same prefix, true by default",
                "kv_store": "KV store that keeps the cached blocks as well: its name, or {store: NAME, …} with the "
                "store's options, such as {store: paged, name: shared, capacity_gb: 4}; none by default",
                "kv_store_wait_s": "seconds that a request waits for blocks from the KV store before it computes them, "
                "1 by default",
                "device": "OpenVINO device, CPU by default",
                "threads": "CPU threads; default: all available to the process",
                "cache_dir": "folder of prepared models; default: the user's cache folder",
            },
            limits=(
                "GGUF files and Hugging Face folders of Llama, SmolLM, Mistral, Qwen 2 and 3, Phi-3 and 4, "
                "Gemma 1 and 3, Granite 3, OLMo 2 and 3; no mixtures of experts.",
                "Devices other than CPU are untested.",
                "No LoRA; no weight quantization that needs calibration, and no sparsity.",
            ),
        ),
        BackendSpec(
            name="openvino-embedding",
            factory="sage_infer_openvino.embedding_backend:OpenVINOEmbeddingBackend",
            serves={"embedding", "reranker"},
            hardware={"cpu"},
            requires=_REQUIRES,
            memory="sage_infer_openvino.memory:encoder_memory",
            summary="sentence encoders and rerankers of the BERT family on OpenVINO",
            options={
                "precision": "f32 (default), bf16 or f16",
                "device": "OpenVINO device, CPU by default",
                "threads": "CPU threads; default: all available to the process",
                "token_budget": "tokens per batch, including padding, 1024 by default; smaller is fairer",
                "max_queue": "maximum open texts, 16384 by default",
                "prompt": "prefix of every text, such as 'query: '; '' for none; default: the model's default prompt",
                "prompt_name": "name of one of the model's prompts, such as query or passage",
            },
            limits=(
                "Only BERT, RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT, as safetensors with a tokenizer.json.",
                "Rerankers truncate pairs of texts that are too long; the contract has no option for it.",
            ),
        ),
    ]


@hookimpl
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    return [
        KVFormatSpec(
            name="openvino-int8",
            factory="sage_infer_openvino.kv_format:OpenVINOInt8Codec",
            format_ids={"openvino-*"},
            summary="8-bit KV pages of the backend openvino",
        ),
    ]
