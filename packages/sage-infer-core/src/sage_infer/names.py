"""Name patterns and value sets that several schemas share."""

from __future__ import annotations

from typing import Literal, get_args

from sage_infer.checks import Choice, Text

__all__ = [
    "FEATURES",
    "GENERATING",
    "InstanceType",
    "ModelType",
    "Precision",
    "feature_name",
    "hardware_name",
    "precision",
]

# The first six are known to this repository; a plug-in may use any other lower-case name for its hardware.
KNOWN_HARDWARE = ("cpu", "cuda", "ascend", "cambricon", "hygon", "kunlunxin")

InstanceType = Literal["prefill", "decode", "general", "embedding", "hybrid"]
ModelType = Literal["llm", "embedding", "reranker", "multimodal"]
GENERATING: tuple[ModelType, ...] = ("llm", "multimodal")  # the types that write text
Precision = Literal[
    "fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4", "int8", "int4"
]  # fmt: skip

FEATURES = (
    "streaming",
    "chat",
    "tool_calls",
    "tokenize",  # the backend is a ``Tokenizing``
    "template_variables",  # render_chat takes them
    "reasoning",  # deltas carry reasoning apart from text
    "logprobs",
    "seed",
    "parallel_sampling",  # SamplingParams.n > 1
    "penalties",
    "min_p",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "lora",
    "priority",  # from here to trace: the fields of RequestOptions
    "deadline",
    "tenant",
    "session",
    "service_class",
    "slo",
    "chain",
    "cache_salt",
    "retention",
    "trace",
    "multimodal",
    "prefix_caching",
    "prefill_decode",  # prefill and decode as two calls, in one instance
    "kv_export",
    "kv_import",
    "kv_events",  # the backend is a ``KVEventSource``
    "resume",  # the backend is a ``Resuming``
    "reports",  # the backend is an ``InstanceReporting``
    "quant_profile",
    "sleep",
    "embed",
    "rerank",
)


def hardware_name() -> Text:
    """``cpu``, ``cuda``, or any name that a plug-in brings."""
    return Text(pattern="[a-z][a-z0-9_-]*", hint="a lower-case name such as cpu, cuda or ascend")


def feature_name() -> Text:
    """One of ``FEATURES``, or a plug-in's own name that starts with ``x-``."""
    known = "|".join(FEATURES)
    return Text(pattern=f"{known}|x-[a-z0-9_-]+", hint=f"one of {', '.join(FEATURES)}, or x-<own name>")


def precision() -> Choice:
    return Choice(get_args(Precision))
