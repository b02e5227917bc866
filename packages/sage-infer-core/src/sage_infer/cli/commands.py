"""The tree of commands: where each one is, and what its line in a help page says."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COMMANDS", "GROUPS", "HINTS"]

GROUPS: Mapping[str, str] = {
    "infer": "Run models on any engine, and see what is installed.",
    "infer backend": "Engines: which are installed, ready or missing something.",
    "infer config": "The configuration and where each value comes from.",
    "infer model": "Models: what is here, and how to get more.",
    "infer plugin": "Plug-ins of every kind: what they bring, and whether it works.",
    "infer schema": "Schemas of everything that crosses a contract.",
}

COMMANDS: Mapping[str, tuple[str, str]] = {
    "infer backend list": ("sage_infer.cli.backend:list_", "List backends with their state."),
    "infer backend show": ("sage_infer.cli.backend:show", "Everything known of one backend."),
    "infer chat": ("sage_infer.cli.chat:chat", "Chat with a model."),
    "infer config init": (
        "sage_infer.cli.config:init",
        "Write a configuration file with every key explained.",
    ),
    "infer config show": ("sage_infer.cli.config:show", "Values in force, and where each comes from."),
    "infer config validate": ("sage_infer.cli.config:validate", "Check a configuration file."),
    "infer doctor": ("sage_infer.cli.doctor:doctor", "What is installed, ready, missing, and how to fix it."),
    "infer embed": ("sage_infer.cli.embed:embed", "Turn texts into vectors and compare them."),
    "infer generate": ("sage_infer.cli.generate:generate", "Answer a prompt."),
    "infer model add": ("sage_infer.cli.model:add", "Fetch a model and prepare what the engine needs."),
    "infer model list": ("sage_infer.cli.model:list_", "List models by name."),
    "infer model path": ("sage_infer.cli.model:path", "Print where a model's files are."),
    "infer plugin list": ("sage_infer.cli.plugin:list_", "List what plug-ins bring, of every kind."),
    "infer plugin show": ("sage_infer.cli.plugin:show", "Everything known of one thing."),
    "infer rerank": ("sage_infer.cli.rerank:rerank", "Sort documents by relevance to a query."),
    "infer schema dump": ("sage_infer.cli.schema:dump", "Write JSON Schema 2020-12 of the schemas."),
    "infer schema list": ("sage_infer.cli.schema:list_", "List schemas with version and summary."),
    "infer schema validate": ("sage_infer.cli.schema:validate", "Check a JSON document against a schema."),
}

HINTS: Mapping[str, str] = {
    "infer backend test": "sage-infer-testing",
    "infer plugin test": "sage-infer-testing",
    "infer hal plot": "sage-infer-hal",
    "infer hal profile": "sage-infer-hal",
    "infer hal show": "sage-infer-hal",
    "infer serve": "sage-infer-serve",
    "infer bench": "sage-infer-serve",
    "infer key add": "sage-infer-serve",
    "infer key list": "sage-infer-serve",
    "infer key remove": "sage-infer-serve",
    "llm": "sage-llm",
}
"""Commands of other wheels, and the wheel to install where one is missing."""
