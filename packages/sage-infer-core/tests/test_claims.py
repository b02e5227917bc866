"""What a request sets is claimed by its backend, or refused by name."""

from __future__ import annotations

import attrs
import pytest
from attrs import frozen
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import (
    FEATURES,
    SLO,
    GuidedDecoding,
    MediaItem,
    Prompt,
    RequestOptions,
    Retention,
    SamplingParams,
)
from sage_infer.sdk import FEATURE_OF, accepted_options, check_claims


@pytest.mark.parametrize("cls", FEATURE_OF)
def test_every_field_has_its_row(cls: type) -> None:
    assert {attribute.name for attribute in attrs.fields(cls)} == set(FEATURE_OF[cls])
    assert {feature for feature in FEATURE_OF[cls].values() if feature is not None} <= set(FEATURES)


def test_defaults_need_no_feature() -> None:
    check_claims((), backend="x", params=SamplingParams(), options=RequestOptions())


SET = [
    (SamplingParams(min_p=0.1), "params.min_p", "min_p"),
    (SamplingParams(presence_penalty=1), "params.presence_penalty", "penalties"),
    (SamplingParams(n=2), "params.n", "parallel_sampling"),
    (SamplingParams(logprobs=0), "params.logprobs", "logprobs"),
    (SamplingParams(adapter="a"), "params.adapter", "lora"),
    (SamplingParams(guided=GuidedDecoding(regex="a")), "params.guided.regex", "guided_regex"),
]


@pytest.mark.parametrize(("params", "name", "feature"), SET)
def test_sampling_is_refused_by_name_unless_it_is_claimed(
    params: SamplingParams, name: str, feature: str
) -> None:
    check_claims([feature], backend="x", params=params)
    with pytest.raises(UnsupportedFeature, match=rf"x does not support {name} \(feature {feature}\)"):
        check_claims([f for f in FEATURES if f != feature], backend="x", params=params)


OPTIONS = {
    "priority": 1, "deadline": 5.0, "tenant": "t", "session": "s", "service_class": "batch", "slo": SLO(ttft_s=1),
    "chain": "c", "cache_salt": "s", "retention": Retention(value=2), "trace": {"traceparent": "x"},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_refused_by_name_unless_they_are_claimed(name: str) -> None:
    options = RequestOptions(**{name: OPTIONS[name]})
    check_claims([name], backend="x", options=options)
    with pytest.raises(UnsupportedFeature, match=f"options.{name}"):
        check_claims([f for f in FEATURES if f != name], backend="x", options=options)


def test_a_field_that_no_table_knows_is_refused_whatever_is_claimed() -> None:
    @frozen(kw_only=True)
    class LaterParams(SamplingParams):
        novelty: float = 0.0

    @frozen(kw_only=True)
    class LaterOptions(RequestOptions):
        colour: str | None = None

    check_claims(FEATURES, backend="x", params=LaterParams(), options=LaterOptions())
    with pytest.raises(UnsupportedFeature, match=r"params\.novelty"):
        check_claims(FEATURES, backend="x", params=LaterParams(novelty=1))
    with pytest.raises(UnsupportedFeature, match=r"options\.colour"):
        check_claims(FEATURES, backend="x", options=LaterOptions(colour="red"))


def test_everything_that_is_refused_is_named() -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        check_claims((), backend="x", params=SamplingParams(n=2, seed=1), options=RequestOptions(tenant="t"))
    assert [word in str(caught.value) for word in ("params.n", "params.seed", "options.tenant")] == [True] * 3


def test_media_need_the_feature() -> None:
    prompt = Prompt(text="x", media=[MediaItem(kind="image", uri="file:///x.png")])
    check_claims(["multimodal"], backend="x", prompts=[prompt])
    with pytest.raises(UnsupportedFeature, match="multimodal"):
        check_claims((), backend="x", prompts=[prompt])


def test_a_caller_that_honours_options_itself_forwards_those_that_are_claimed() -> None:
    options = RequestOptions(**OPTIONS)
    kept = accepted_options(["priority", "trace"], options)
    assert kept == RequestOptions(priority=1, trace={"traceparent": "x"})
    check_claims(["priority", "trace"], backend="x", options=kept)
