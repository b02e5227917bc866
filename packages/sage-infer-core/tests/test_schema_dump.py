"""The compatibility gate: today's JSON Schemas against the committed ones (``docs/compatibility.md``)."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sage_infer.schemas.json_schema import json_schemas

COMMITTED = Path(__file__).parent / "data" / "schemas.json"

Schemas = dict[str, dict[str, Any]]


def breaking_changes(old: Any, new: Any, path: str = "$") -> Iterator[str]:
    """What in ``new`` refuses documents that ``old`` took, or loses what they said."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.get("properties", {}):
            if name not in new.get("properties", {}):
                yield f"{path}.{name} was removed"
        for name in set(new.get("required", ())) - set(old.get("required", ())):
            yield f"{path}.{name} became required"
        if old.get("enum") and not set(old["enum"]) <= set(new.get("enum", old["enum"])):
            yield f"{path} lost values {sorted(set(old['enum']) - set(new['enum']))}"
        for key in ("type", "pattern", "$ref"):
            if old.get(key) != new.get(key) and not is_longer_list_of_names(old.get(key), new.get(key)):
                yield f"{path} changed {key}: {old.get(key)} → {new.get(key)}"
        for key, narrower in (
            ("minimum", 1),
            ("exclusiveMinimum", 1),
            ("minItems", 1),
            ("minLength", 1),
            ("maximum", -1),
            ("exclusiveMaximum", -1),
        ):
            if key in new and (key not in old or (new[key] - old[key]) * narrower > 0):
                yield f"{path} narrowed {key}: {old.get(key)} → {new[key]}"
        for key in ("properties", "$defs", "items", "additionalProperties", "anyOf"):
            yield from breaking_changes(old.get(key), new.get(key), f"{path}/{key}")
        if "properties" not in old and "type" not in old:
            for name in old.keys() & new.keys():
                yield from breaking_changes(old[name], new[name], f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list):
        for index, (mine, theirs) in enumerate(zip(old, new, strict=False)):
            yield from breaking_changes(mine, theirs, f"{path}[{index}]")


def is_longer_list_of_names(old: Any, new: Any) -> bool:
    """Whether a pattern of alternatives, such as the names of features, has only got more of them."""
    whole = re.compile(r"\^\(\?:([^()]+)\)\$")
    before, now = (whole.fullmatch(pattern) if isinstance(pattern, str) else None for pattern in (old, new))
    if before is None or now is None:
        return False
    return set(before[1].split("|")) <= set(now[1].split("|"))


@pytest.fixture(scope="module")
def committed() -> Schemas:
    schemas: Schemas = json.loads(COMMITTED.read_text("utf-8"))
    return schemas


def test_todays_schemas_are_the_committed_ones(committed: Schemas) -> None:
    today = json.loads(json.dumps(json_schemas()))
    broken = [
        change
        for name, old in committed.items()
        for change in breaking_changes(old, today.get(name, {}), name)
    ]
    assert not broken, "needs a new major version, see docs/compatibility.md: " + "; ".join(broken)
    assert today == committed, f"compatible, but not committed: run `sage infer schema dump > {COMMITTED}`"


def changed(schemas: Schemas, change: str) -> Schemas:
    new = copy.deepcopy(schemas)
    chunk = new["KVChunk"]
    if change == "remove":
        del chunk["properties"]["nbytes"]
    elif change == "require":
        chunk["required"].append("location")
    elif change == "narrow":
        chunk["properties"]["nbytes"]["minimum"] = 1
    elif change == "retype":
        chunk["properties"]["nbytes"]["type"] = "string"
    elif change == "lose value":
        chunk["$defs"]["KVCacheSchema"]["properties"]["dtype"]["enum"].remove("int4")
    elif change == "bound":
        chunk["properties"]["request_id"]["minLength"] = 5
    elif change == "lose name":
        features = new["CapabilityDescriptor"]["properties"]["features"]["items"]
        features["pattern"] = features["pattern"].replace("chat|", "")
    elif change == "add name":
        features = new["CapabilityDescriptor"]["properties"]["features"]["items"]
        features["pattern"] = features["pattern"].replace("chat|", "chat|sing|")
    elif change == "add optional":
        chunk["properties"]["note"] = {"type": "string", "default": ""}
    elif change == "add value":
        chunk["$defs"]["KVCacheSchema"]["properties"]["dtype"]["enum"].append("int2")
    return new


@pytest.mark.parametrize(
    "change", ["remove", "require", "narrow", "retype", "lose value", "bound", "lose name"]
)
def test_the_gate_sees_a_breaking_change(committed: Schemas, change: str) -> None:
    assert list(breaking_changes(committed, changed(committed, change)))


@pytest.mark.parametrize("change", ["add optional", "add value", "add name"])
def test_the_gate_lets_an_addition_pass(committed: Schemas, change: str) -> None:
    assert changed(committed, change) != committed
    assert not list(breaking_changes(committed, changed(committed, change)))
