"""The kinds of plug-in contents: one table with name, hook and spec of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from sage_infer import specs

__all__ = ["KINDS", "Kind", "KindName"]

KindName = Literal[
    "backend", "detector", "store", "format", "transport", "executor", "model", "command", "config"
]


class Kind(NamedTuple):
    """``noun`` is the word for one item in messages."""

    hook: str
    spec: type[Any]
    noun: str


KINDS: Mapping[KindName, Kind] = {
    "backend": Kind("sage_infer_backends", specs.BackendSpec, "backend"),
    "detector": Kind("sage_infer_detectors", specs.DetectorSpec, "detector"),
    "store": Kind("sage_infer_kv_stores", specs.KVStoreSpec, "KV store"),
    "format": Kind("sage_infer_kv_formats", specs.KVFormatSpec, "KV format"),
    "transport": Kind("sage_infer_transports", specs.TransportSpec, "transport"),
    "executor": Kind("sage_infer_executors", specs.ExecutorSpec, "executor"),
    "model": Kind("sage_infer_models", specs.ModelSpec, "model"),
    "command": Kind("sage_infer_commands", specs.CommandSpec, "command"),
    "config": Kind("sage_infer_config", specs.ConfigSpec, "configuration section"),
}
