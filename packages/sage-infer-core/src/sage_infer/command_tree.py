"""The command tree: where each command is, and its line in help pages."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COMMANDS", "GROUPS", "HINTS"]

GROUPS: Mapping[str, str] = {
    "infer": "Run models on any engine and inspect the installation.",
    "infer backend": "Engines and their state.",
    "infer config": "The configuration and the origin of each value.",
    "infer model": "Models on this machine and how to fetch more.",
    "infer plugin": "Plug-ins of every kind and their state.",
    "infer schema": "Schemas of all data types in the contract.",
}

COMMANDS: Mapping[str, tuple[str, str]] = {
    "infer backend list": ("sage_infer.cli.backend:list_", "List backends with their state."),
    "infer backend show": ("sage_infer.cli.backend:show", "Show a backend in detail."),
    "infer chat": ("sage_infer.cli.chat:chat", "Chat with a model."),
    "infer config init": (
        "sage_infer.cli.config:init",
        "Write a configuration file with every key explained.",
    ),
    "infer config show": ("sage_infer.cli.config:show", "Show the values in effect and their origins."),
    "infer config validate": ("sage_infer.cli.config:validate", "Check a configuration file."),
    "infer doctor": ("sage_infer.cli.doctor:doctor", "Show installed, ready and missing parts, with fixes."),
    "infer embed": ("sage_infer.cli.embed:embed", "Turn texts into vectors and compare them."),
    "infer generate": ("sage_infer.cli.generate:generate", "Answer a prompt."),
    "infer model add": ("sage_infer.cli.model:add", "Fetch a model and prepare it for the engines."),
    "infer model list": ("sage_infer.cli.model:list_", "List models by name."),
    "infer model path": ("sage_infer.cli.model:path", "Print the location of a model's files."),
    "infer plugin list": ("sage_infer.cli.plugin:list_", "List contents of plug-ins, of every kind."),
    "infer plugin show": ("sage_infer.cli.plugin:show", "Show one item in detail."),
    "infer rerank": ("sage_infer.cli.rerank:rerank", "Sort documents by relevance to a query."),
    "infer schema dump": ("sage_infer.cli.schema:dump", "Write JSON Schema 2020-12 of the schemas."),
    "infer schema list": ("sage_infer.cli.schema:list_", "List schemas with version and summary."),
    "infer schema validate": ("sage_infer.cli.schema:validate", "Check a JSON document against a schema."),
}

HINTS: Mapping[str, str] = {
    "infer backend test": "sage-infer-testing",
    "infer plugin new": "sage-infer-testing",
    "infer plugin test": "sage-infer-testing",
    "infer hal plot": "sage-infer-hal",
    "infer hal profile": "sage-infer-hal",
    "infer hal show": "sage-infer-hal",
    "infer serve": "sage-infer-serve",
    "infer bench": "sage-infer-serve",
    "infer key add": "sage-infer-serve",
    "infer key list": "sage-infer-serve",
    "infer key remove": "sage-infer-serve",
    "infer kv convert": "sage-infer-kvstore",
    "infer kv purge": "sage-infer-kvstore",
    "infer kv stat": "sage-infer-kvstore",
    "infer kv verify": "sage-infer-kvstore",
    "infer transport listen": "sage-infer-transport",
    "infer transport probe": "sage-infer-transport",
    "llm": "sage-llm",
}
"""Commands of other wheels, and the wheel to install if one is missing."""
