"""What this wheel brings to sage-infer. Imports nothing of the engine."""

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
                "weight_format": "int8 (default; a file's own 4- and 8-bit blocks stay as they are), int4, exact, "
                "bf16 or f32",
                "precision": "f32 (default; the batch does not change results), bf16 or f16 where the device has it",
                "kv_precision": "f32, bf16, f16 or u8; as precision where left out",
                "kv_schema": "{preset: fp16, bf16 or int8} as --kv-schema sets it; another way to say kv_precision",
                "dynamic_quantization": "round activations to 8 bits before products with quantized weights, false by "
                "default; faster on CPUs with VNNI, without effect on others",
                "kv_cache_gb": "size of the KV cache in GiB, 1.0 by default",
                "max_batch_size": "sequences that run at once, 32 by default",
                "max_sequence_length": "prompt and output in tokens; default: the model's limit",
                "max_queue": "open requests before new ones are refused, 1024 by default",
                "hold_s": "seconds that a prefilled request waits for decode before its KV is freed, 600 by default",
                "step_tokens": "tokens computed in one step, 512 by default; smaller is fairer, larger is faster",
                "decode_slowdown": "how many times longer a step may take for prompts while others read along, 2.5 "
                "by default",
                "prefix_caching": "cache blocks of finished requests for prompts with the same prefix, true by default",
                "device": "OpenVINO device, CPU by default",
                "threads": "CPU threads; all that the process may use where left out",
                "cache_dir": "where prepared models are kept; the user's cache folder where left out",
            },
            limits=(
                "GGUF files and Hugging Face folders of Llama, SmolLM, Mistral, Qwen 2 and 3, Phi-3 and 4, "
                "Gemma 1 and 3, Granite 3, OLMo 2 and 3; no mixtures of experts.",
                "Devices other than CPU have not been tried.",
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
                "threads": "CPU threads; all that the process may use where left out",
                "token_budget": "tokens in one batch, padding included, 1024 by default; smaller is fairer",
                "max_queue": "texts that may be open at once before Overloaded, 16384 by default",
                "prompt": "text before every text, such as 'query: '; '' for none; the model's default where left out",
                "prompt_name": "a prompt of the model's own by its name, such as query or passage",
            },
            limits=(
                "BERT, RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT, in safetensors with a tokenizer.json, only.",
                "A reranker cuts a pair of texts that is too long; its contract has no other way.",
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
            summary="KV pages of 8-bit integers of the backend openvino",
        ),
    ]
