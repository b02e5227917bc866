"""Check the names and arguments that the adapter uses, in the sources of a vLLM that is not installed.

    python tools/vllm_signatures.py WHEEL [--record]

Reads the wheel as text; nothing of it is imported, so any build of any release can be checked. ``--record`` notes the
result in benchmarks/results/vllm_versions.json. Where there are alternatives, the package ``compat`` chooses; releases
before 0.23 lack hooks for held KV, without which the adapter leaves its connector out.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from vllm_versions import read, write

# module: name (or Class.method), and the arguments that the adapter passes by name
USED: Sequence[tuple[tuple[str, ...], str, tuple[str, ...]]] = (
    (("v1/engine/async_llm",), "AsyncLLM.from_vllm_config", ("stat_loggers", "disable_log_stats")),
    (("v1/engine/async_llm",), "AsyncLLM.add_request", ("lora_request", "trace_headers", "priority")),
    (("v1/engine/async_llm",), "AsyncLLM.generate", ()),
    (("v1/engine/async_llm",), "AsyncLLM.encode", ("priority",)),
    (("v1/engine/async_llm",), "AsyncLLM.abort", ()),
    (("v1/engine/async_llm",), "AsyncLLM.shutdown", ()),
    (("v1/engine/async_llm",), "AsyncLLM.get_tokenizer", ()),
    (("v1/engine/async_llm",), "AsyncLLM.get_supported_tasks", ()),
    (("v1/engine/async_llm",), "AsyncLLM.collective_rpc", ("args",)),
    (("v1/engine/async_llm",), "AsyncLLM.notify_kv_transfer_request_rejected", ()),
    (("v1/engine/async_llm",), "AsyncLLM.sleep", ()),
    (("v1/engine/async_llm",), "AsyncLLM.wake_up", ()),
    (("v1/engine/exceptions",), "EngineDeadError", ()),
    (("v1/metrics/loggers",), "StatLoggerBase.record", ()),
    (("v1/engine/output_processor",), "RequestOutputCollector.put", ()),
    (("engine/arg_utils",), "EngineArgs.create_engine_config", ("usage_context",)),
    (("engine/arg_utils",), "AsyncEngineArgs", ()),
    (("sampling_params",), "SamplingParams", ()),
    (("sampling_params",), "StructuredOutputsParams", ()),
    (("sampling_params",), "RequestOutputKind", ()),
    (("pooling_params",), "PoolingParams", ()),
    (("lora/request",), "LoRARequest", ()),
    (("outputs",), "RequestOutput", ()),
    (("outputs",), "PoolingRequestOutput", ()),
    (("config/structured_outputs",), "StructuredOutputsConfig", ()),
    (("config/kv_transfer",), "KVTransferConfig", ()),
    (("config/cache",), "CacheDType", ()),
    (("usage/usage_lib",), "UsageContext", ()),
    (("utils/async_utils", "utils/__init__"), "cancel_task_threadsafe", ()),
    (("inputs/engine", "inputs/data", "inputs/llm"), "tokens_input|TokensPrompt", ()),
    (
        ("entrypoints/openai/chat_completion/protocol", "entrypoints/openai/protocol"),
        "ChatCompletionRequest",
        (),
    ),
    (
        ("tool_parsers/abstract_tool_parser", "entrypoints/openai/tool_parsers/abstract_tool_parser"),
        "ToolParserManager.get_tool_parser",
        (),
    ),
    (("v1/attention/backends/cpu_attn",), "CPUAttentionBackend", ()),
    (("distributed/kv_transfer/kv_connector/v1/base",), "KVConnectorBase_V1.bind_gpu_block_pool", ()),
    (("distributed/kv_transfer/kv_connector/v1/base",), "KVConnectorBase_V1.on_new_request", ()),
    (("distributed/kv_transfer/kv_connector/v1/base",), "KVConnectorBase_V1.request_finished", ()),
    (("distributed/kv_transfer/kv_connector/v1/base",), "SupportsHMA.request_finished_all_groups", ()),
    (("v1/sample/logits_processor/interface",), "LogitsProcessor.update_state", ()),
    (("model_executor/layers/rotary_embedding/__init__",), "_ROPE_DICT", ()),
)


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    wheel = Path(arguments[0])
    with zipfile.ZipFile(wheel) as archive:
        problems = [line for modules, name, given in USED if (line := problem(archive, modules, name, given))]
    print("\n".join(problems) or f"{wheel.name}: all {len(USED)} names and their arguments are there")
    if "--record" in arguments:
        version = wheel.name.split("-")[1].partition("+")[0]
        found = read()
        found.setdefault(version, {})["signatures"] = {"checked": len(USED), "missing": len(problems)}
        write(found)
    return 1 if problems else 0


def problem(archive: zipfile.ZipFile, modules: Sequence[str], names: str, arguments: Sequence[str]) -> str:
    """What is missing; empty if nothing."""
    present = [f"vllm/{module}.py" for module in modules if f"vllm/{module}.py" in archive.namelist()]
    for file in present:
        tree = ast.parse(archive.read(file))
        for name in names.split("|"):
            found = definition(tree, name.split("."))
            if found is None:
                continue
            if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
                return ""
            has = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
            lacks = [] if found.args.kwarg else [argument for argument in arguments if argument not in has]
            return f"{file}: {name} lacks {', '.join(lacks)}" if lacks else ""
    return f"none of {', '.join(modules)} has {names}"


def definition(tree: ast.AST, path: Sequence[str]) -> ast.AST | None:
    """The statement that defines a dotted name."""
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", "")
        if isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            name = next((t.id for t in targets if isinstance(t, ast.Name)), "")
        if name == path[0]:
            return node if len(path) == 1 else definition(node, path[1:])
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
