"""Every schema: valid data goes to JSON and back unchanged, and every wrong field is refused by name."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import attrs
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer import checks
from sage_infer.errors import SchemaError
from sage_infer.schemas import (
    DecodeState,
    EmbeddingResult,
    GuidedDecoding,
    HardwareProfile,
    HybridCapabilityDescriptor,
    KVCacheSchema,
    KVChunk,
    KVGroup,
    Prompt,
    QuantizationProfile,
    SamplingParams,
    TransportPlan,
    Usage,
    all_schemas,
)
from sage_infer.schemas.base import schema_version
from sage_infer.schemas.codec import from_dict, from_json, to_dict, to_json
from sage_infer.schemas.json_schema import field_docs, json_schema

SCHEMAS = all_schemas()
FAR = 1 << 40  # where a bound is open

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-FAR, FAR)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def values(kind: Any, check: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type that pass the field's check."""
    if isinstance(check, checks.optional):
        inner = next(a for a in get_args(kind) if a is not type(None))
        return st.none() | values(inner, check.check)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        item = values(get_args(kind)[0], check.check)
        return st.lists(item, min_size=check.min_items, max_size=4, unique=check.unique).map(tuple)
    if isinstance(check, checks.JsonWithin):
        return st.dictionaries(st.text(max_size=6), json_values, max_size=3)
    if get_origin(kind) is Mapping:
        return st.dictionaries(st.text(max_size=6), values(get_args(kind)[1], check.check), max_size=3)
    if attrs.has(kind):
        return instances(kind)
    if isinstance(check, checks.Json):
        return json_values
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-FAR if check.ge is None else check.ge, FAR if check.le is None else check.le)
    if kind is float:
        low, high = check.ge if check.gt is None else check.gt, check.le if check.lt is None else check.lt
        return st.floats(
            low,
            high,
            allow_nan=False,
            allow_infinity=False,
            exclude_min=check.gt is not None,
            exclude_max=check.lt is not None,
        )
    assert kind is str
    if isinstance(check, checks.Choice):
        return st.sampled_from(check.options)
    if check.pattern is not None:
        return st.from_regex(check.pattern, fullmatch=True)
    return st.text(min_size=check.min_length, max_size=12)


def arguments(cls: type) -> dict[str, st.SearchStrategy[Any]]:
    fields = attrs.fields(attrs.resolve_types(cls))
    return {a.name: values(a.type, a.validator) for a in fields}


def instances(cls: type) -> st.SearchStrategy[Any]:
    """Instances of a schema; classes with rules across fields get what their rules want."""
    fields = st.fixed_dictionaries(arguments(cls)) if cls not in RULES else RULES[cls]()
    return fields.map(lambda given: cls(**given))


def _group() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        windowed, state = given["kind"] in ("sliding", "chunked"), given["kind"] == "state"
        return given | {
            "window": given["window"] or 1 if windowed else None,
            "state_bytes": given["state_bytes"] + 1 if state else 0,
        }

    return st.fixed_dictionaries(arguments(KVGroup)).map(fit)


def _kv() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        layers = range(given["num_layers"])
        cut = min(len(given["groups"]), len(layers))  # one group takes what the others leave
        parts = [(i,) for i in layers[: cut - 1]] + [tuple(layers[cut - 1 :])] if cut else []
        groups = [attrs.evolve(g, layers=part) for g, part in zip(given["groups"], parts, strict=False)]
        dtypes = {given["dtype"], given["value_dtype"], *(group.dtype for group in groups)}
        if given["scale_dtype"] is None and dtypes & {"int8", "int4"}:
            given["scale_dtype"] = "fp16"
        if given["scale_dtype"] is None:
            given |= {"scale_granularity": None, "value_scale_granularity": None, "zero_points": False}
        else:
            given["scale_granularity"] = given["scale_granularity"] or "token"
        return given | {"groups": tuple(groups), "rope_dim": given["rope_dim"] and given["head_dim"],
                        "num_heads": given["num_heads"] * given["shards"]}  # fmt: skip

    axes = get_args(get_args(attrs.fields(attrs.resolve_types(KVCacheSchema)).axis_order.type)[0])
    names = ("page_size", "num_layers", "num_heads", "head_dim", "shards")
    small = {n: st.integers(1, 256) for n in names}
    order = st.permutations(axes).map(tuple)
    orders = {"axis_order": order, "key_axis_order": st.none() | order}
    return st.fixed_dictionaries(arguments(KVCacheSchema) | small | orders).map(fit)


def _state() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        return given | ({"chunks": ()} if given["kv_schema"] is None else {})

    return st.fixed_dictionaries(arguments(DecodeState)).map(fit)


def _chunk() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        layers = given["kv_schema"].num_layers
        end = min(given["layer_end"], layers)
        tokens = {"token_end": given["token_start"] + given["token_end"]}
        return given | {"layer_start": given["layer_start"] % end, "layer_end": end} | tokens

    return st.fixed_dictionaries(arguments(KVChunk)).map(fit)


def _quantization() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        ratio = {"none": 0.0, "2:4": 0.5}.get(given["sparsity_pattern"], given["sparsity_ratio"] or 0.25)
        dataset = given["calibration_dataset"] or ("wikitext" if given["calibration_samples"] else None)
        return given | {"sparsity_ratio": ratio, "calibration_dataset": dataset}

    return st.fixed_dictionaries(arguments(QuantizationProfile)).map(fit)


def _guided() -> st.SearchStrategy[dict[str, Any]]:
    ways = arguments(GuidedDecoding)
    return st.sampled_from(sorted(ways)).flatmap(
        lambda way: st.fixed_dictionaries({way: ways[way].filter(lambda value: value is not None)})
    )


def _sampling() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        most = given["max_tokens"]
        return given if most is None else given | {"min_tokens": min(given["min_tokens"], most)}

    return st.fixed_dictionaries(arguments(SamplingParams)).map(fit)


def _prompt() -> st.SearchStrategy[dict[str, Any]]:
    given = arguments(Prompt)
    text = st.fixed_dictionaries(given | {"text": st.text(min_size=1), "token_ids": st.none()})
    ids = st.fixed_dictionaries(
        given | {"text": st.none(), "token_ids": st.lists(st.integers(0, FAR), min_size=1).map(tuple)}
    )
    return text | ids


def _plan() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(arguments(TransportPlan)).map(
        lambda given: given | {"total_bytes": sum(step.nbytes for step in given["steps"])}
    )


def _hybrid() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        models = {model.model_id: model for model in given["loaded_models"]}
        available = min(given["available_memory_gb"], given["total_memory_gb"])
        return given | {"loaded_models": tuple(models.values()), "available_memory_gb": available}

    return st.fixed_dictionaries(arguments(HybridCapabilityDescriptor)).map(fit)


def _hardware() -> st.SearchStrategy[dict[str, Any]]:
    def fit(given: dict[str, Any]) -> dict[str, Any]:
        devices = {(a.hardware_backend, a.index): a for a in given["accelerators"]}
        return given | {"accelerators": tuple(devices.values())}

    return st.fixed_dictionaries(arguments(HardwareProfile)).map(fit)


RULES = {
    KVGroup: _group, DecodeState: _state, KVCacheSchema: _kv, KVChunk: _chunk,
    QuantizationProfile: _quantization, GuidedDecoding: _guided, Prompt: _prompt,
    SamplingParams: _sampling, TransportPlan: _plan, HybridCapabilityDescriptor: _hybrid, HardwareProfile: _hardware,
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    instance = data.draw(instances(SCHEMAS[name]))
    text = to_json(instance)
    assert from_json(text, SCHEMAS[name]) == instance
    assert from_json(text, SCHEMAS[name], tolerant=True) == instance
    jsonschema.validate(json.loads(text), json_schema(SCHEMAS[name]), cls=jsonschema.Draft202012Validator)


def wrong_values(kind: Any, check: Any) -> list[Any]:
    """Values just outside what a field takes, and of every other type."""
    if isinstance(check, checks.optional):
        inner = next(a for a in get_args(kind) if a is not type(None))
        return [value for value in wrong_values(inner, check.check) if value is not None]
    if isinstance(check, checks.Choice):
        return ["no-such-choice", 3, None, ["a"]]
    if isinstance(check, checks.Integer):
        outside = [check.ge - 1] if check.ge is not None else []
        return [*outside, *([check.le + 1] if check.le is not None else []), 1.5, "5", True, None, [1]]
    if isinstance(check, checks.Number):
        outside = [low - 0.5 for low in (check.ge,) if low is not None] + [
            b for b in (check.gt, check.lt) if b is not None
        ]
        return [
            *outside,
            *([check.le + 0.5] if check.le is not None else []),
            "1.0",
            True,
            None,
            float("nan"),
            float("inf"),
        ]
    if isinstance(check, checks.Flag):
        return [0, 1, "true", None]
    if isinstance(check, checks.Text):
        too_short = [""] if check.min_length or check.pattern else []
        return [*too_short, 5, None, ["text"], *(["\u00e9 no match \n"] if check.pattern else [])]
    if isinstance(check, checks.Instance):
        return [3, "text", None, []]
    if isinstance(check, checks.Each):
        too_few = [[]] if check.min_items else []
        nested = [[value] for value in wrong_values(get_args(kind)[0], check.check)]
        return [*too_few, *nested, "text", 3, None, {"a": 1}]
    assert isinstance(check, checks.Entries | checks.JsonWithin)
    return ["text", 3, None, ["a"]]


CASES = [
    pytest.param(name, attribute.name, value, id=f"{name}.{attribute.name}={value!r}"[:70])
    for name, cls in SCHEMAS.items()
    for attribute in attrs.fields(attrs.resolve_types(cls))
    for value in wrong_values(attribute.type, attribute.validator)
]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_a_wrong_field_is_refused_by_name(name: str, field: str, value: object) -> None:
    with pytest.raises(SchemaError) as caught:
        from_dict({field: value}, SCHEMAS[name])
    paths = [problem.path for problem in caught.value.problems]
    assert any(path == f"$.{field}" or path.startswith((f"$.{field}[", f"$.{field}.")) for path in paths), (
        paths
    )


def test_direct_construction_refuses_the_same() -> None:
    with pytest.raises(SchemaError, match=r"\$\.temperature: must be ≥ 0 and ≤ 100, got -1"):
        SamplingParams(temperature=-1)
    with pytest.raises(ValueError, match=r"\$\.stop: must be a list, got 'x' \(str\)"):
        SamplingParams(stop="x")  # type: ignore[arg-type]


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SchemaError) as caught:
        from_dict(
            {"dtype": "fp3", "page_size": 0, "num_layer": 1, "num_heads": True, "head_dim": "64"},
            KVCacheSchema,
        )
    assert {problem.path for problem in caught.value.problems} == {
        "$.dtype", "$.page_size", "$.num_layer", "$.num_layers", "$.num_heads", "$.head_dim",
    }  # fmt: skip
    assert "did you mean 'num_layers'?" in str(caught.value)


def test_problems_deep_inside_name_their_path(state: DecodeState) -> None:
    data = to_dict(state)
    data["chunks"][0]["layer_end"] = 99
    data["params"]["guided"]["regex"] = "x"
    data["params"]["top_p"] = 0
    with pytest.raises(SchemaError) as caught:
        from_dict(data, DecodeState)
    assert {problem.path for problem in caught.value.problems} == {
        "$.params.top_p", "$.params.guided", "$.chunks[0].layer_end",
    }  # fmt: skip


def test_tolerant_reading_ignores_unknown_keys_only(state: DecodeState) -> None:
    data = to_dict(state)
    data["from_the_future"] = 1
    data["params"]["also"] = 2
    data["schema_version"] = "1.9"
    assert from_dict(data, DecodeState, tolerant=True) == state
    data["seed"] = "five"
    with pytest.raises(SchemaError, match=r"\$\.seed"):
        from_dict(data, DecodeState, tolerant=True)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("2.0", "reads 1.0; use a release with the same major version"),
        ("1.7", "newer than 1.0, the version of this sage-infer; upgrade it"),
        ("one", "must be MAJOR.MINOR"),
        (1, "must be MAJOR.MINOR"),
    ],
)
def test_version_of_the_document(stated: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_dict({"schema_version": stated}, SamplingParams)
    if stated == "2.0":
        with pytest.raises(SchemaError, match=message):
            from_dict({"schema_version": stated}, SamplingParams, tolerant=True)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nope", b"\xff"])
def test_text_that_is_not_json(text: str | bytes) -> None:
    with pytest.raises(SchemaError, match="is not JSON"):
        from_json(text, SamplingParams)


@pytest.mark.parametrize("data", [None, 3, "text", [1]])
def test_a_document_must_be_an_object(data: object) -> None:
    with pytest.raises(SchemaError, match=r"\$: must be a mapping"):
        from_dict(data, SamplingParams)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_documented_and_versioned(name: str) -> None:
    cls = SCHEMAS[name]
    assert set(field_docs(cls)) == {attribute.name for attribute in attrs.fields(cls)}
    assert re.fullmatch(r"1\.[0-9]+", str(schema_version(cls)))
    jsonschema.Draft202012Validator.check_schema(json_schema(cls))


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=1, deadline=None)
@given(data=st.data())
def test_schemas_are_frozen_slotted_and_keyword_only(name: str, data: st.DataObject) -> None:
    instance = data.draw(instances(SCHEMAS[name]))
    field = attrs.fields(SCHEMAS[name])[0]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(instance, field.name, getattr(instance, field.name))
    assert not hasattr(instance, "__dict__")
    with pytest.raises(TypeError, match="positional"):
        SCHEMAS[name]("positional")


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (KVCacheSchema, {"dtype": "int8"}, "is required by dtype int8"),
        (KVCacheSchema, {"dtype": "fp16", "scale_granularity": "head"}, "is required by scale_granularity"),
        (KVCacheSchema, {"dtype": "fp16", "zero_points": True}, "is required by .*zero_points"),
        (KVCacheSchema, {"dtype": "fp16", "axis_order": ["layer", "kv"]}, "must name each of"),
        (
            QuantizationProfile,
            {"sparsity_pattern": "2:4", "sparsity_ratio": 0.3},
            "must be 0.5 for pattern 2:4",
        ),
        (QuantizationProfile, {"sparsity_ratio": 0.3}, "must be none if and only if"),
        (GuidedDecoding, {}, "exactly one of json_schema, regex, grammar, choice must be set, got none"),
        (SamplingParams, {"min_tokens": 5, "max_tokens": 2}, r"must be ≤ max_tokens \(2\)"),
        (Prompt, {}, "exactly one of text and token_ids"),
        (Prompt, {"text": ""}, "must not be empty"),
        (TransportPlan, {"plan_id": "p", "total_bytes": 3}, r"sum of the steps' nbytes \(0\)"),
    ],
)
def test_rules_across_fields(cls: type, data: dict[str, Any], message: str) -> None:
    geometry = (
        {"page_size": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8} if cls is KVCacheSchema else {}
    )
    with pytest.raises(SchemaError, match=message):
        from_dict(geometry | data, cls)


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (GuidedDecoding, {"json_schema": DEEP}, r"\$\.json_schema: must be at most 64 levels deep"),
        (GuidedDecoding, {"json_schema": {"enum": list(range(30_000))}}, "at most 20000 values"),
        (GuidedDecoding, {"json_schema": {"enum": ["x" * 200_000, "y" * 200_000]}}, "characters in total"),
        (GuidedDecoding, {"json_schema": {"x" * 300_000: 1}}, "characters in total"),
        (
            GuidedDecoding,
            {"regex": "a" * 20_000},
            r"\$\.regex: must have at most 16384 characters, got 20000",
        ),
        (GuidedDecoding, {"grammar": "a" * 200_000}, "at most 131072 characters"),
        (GuidedDecoding, {"choice": [str(i) for i in range(5000)]}, "at most 4096 items, got 5000"),
        (
            GuidedDecoding,
            {"choice": [str(i) * 15_000 for i in range(10)]},
            "at most 131072 characters in total",
        ),
        (GuidedDecoding, {"choice": ["a", "a"]}, "must not repeat an item"),
        (SamplingParams, {"stop": ["a"] * 65}, "at most 64 items"),
        (SamplingParams, {"stop": ["a" * 2000]}, r"\$\.stop\[0\]: must have at most 1024 characters"),
        (SamplingParams, {"stop_token_ids": list(range(5000))}, "at most 4096 items"),
    ],
)
def test_what_is_dear_to_compile_has_a_limited_size(cls: type, data: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        cls(**data)
    assert len(str(caught.value)) < 500
    with pytest.raises(SchemaError, match=message):
        from_dict(data, cls)


def test_token_counts_of_an_embedding_are_one_per_text() -> None:
    vectors = memoryview(array("f", [1.0, 2.0, 3.0, 4.0]))
    result = EmbeddingResult(
        model_id="m", dim=2, data=vectors, usage=Usage(prompt_tokens=5), text_tokens=(2, 3)
    )
    assert result.text_tokens == (2, 3)
    with pytest.raises(SchemaError, match="one count per vector: 2, got 1"):
        attrs.evolve(result, text_tokens=(5,))
