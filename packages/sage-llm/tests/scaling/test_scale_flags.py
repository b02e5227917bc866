"""Bounds of scaling from flags and the configuration, and those that are refused."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor
from sage_llm.commands.autoscale_flags import at_most, at_start, parse_autoscales, with_autoscales
from sage_llm.manager.models import JoinedServer, ServedModel
from sage_llm.scaling.settings import Autoscale, parse_autoscale

LLM = ServedModel(
    descriptor=ModelDescriptor(model_id="big", model_type="llm", model_path="/big"), backend="toy"
)
ENCODER = ServedModel(
    descriptor=ModelDescriptor(model_id="vectors", model_type="embedding", model_path="/v"), backend="toy"
)
JOINED = attrs.evolve(LLM, backend="openai", replicas=0, joined=(JoinedServer(url="http://host"),))


def scaled(
    models: list[ServedModel], flags: list[str], configured: Any = (), replicas: Any = (), gateways: int = 1
) -> list[ServedModel]:
    return with_autoscales(
        models, parse_autoscales(flags), dict(configured), dict(replicas), gateways=gateways
    )


def test_flags() -> None:
    found = parse_autoscales(["0:4", "org/big=1:2,idle_s=60, requests=8"])
    assert found[""] == Autoscale(least=0, most=4)
    assert (found["org/big"].policy.idle_s, found["org/big"].requests, found["org/big"].bounds) == (
        60,
        8,
        "1:2",
    )
    assert parse_autoscale({"min": 0, "max": 4}) == found[""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:1", "the minimum of 4 replicas is above the maximum of 1"),
        ("0:0", "must be >= 1"),
        ("-1:2", "must be MIN:MAX"),
        ("2", "must be MIN:MAX or MIN:MAX,KEY=VALUE,…, such as 0:4"),
        ("big=2", "must be MIN:MAX"),
        ("0:2,idle", "got 'idle'"),
        ("0:2,idle_s=1,idle_s=2", "got 'idle_s=2'"),
        ("0:2,idle_s=soon", "idle_s must be a number, got 'soon'"),
        ("0:2,idle_s=inf", "idle_s must be a number"),
        ("0:2,requests=1.5", "requests must be a whole number"),
        ("0:2,idles=1", "no key 'idles'; keys: min, max, interval_s"),
        ("0:2,low=0.8", "low, target and high must rise"),
        ("0:2,up_s=-1", "'up_s' must be >= 0"),
        ("0:2,budget_per_hour=3", "budget_per_hour needs cost_per_hour"),
        ("2:4,budget_per_hour=3,cost_per_hour=2", "does not pay for 2 replicas at 2"),
    ],
)
def test_flags_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_autoscales([text])
    assert message in str(caught.value)
    assert "--autoscale" in str(caught.value)


def test_the_configuration() -> None:
    for wrong, wanted in (
        ({"max": 4}, "llm.autoscale lacks the key 'min'"),
        ({"min": 0, "max": True}, "max must be a whole number, got True"),
        ({"min": 0, "max": 4, "idle": 3}, "llm.autoscale has no key 'idle'"),
    ):
        with pytest.raises(InvalidRequest, match=wanted):
            scaled([LLM], [], wrong)


def test_a_budget_limits_the_number() -> None:
    assert parse_autoscale("0:8,cost_per_hour=2.5,budget_per_hour=10").affordable == 4
    assert parse_autoscale("0:8,cost_per_hour=2.5").affordable == 8


def test_which_models_are_scaled() -> None:
    def bounds(*arguments: Any) -> list[str]:
        return [m.autoscale.bounds if m.autoscale else "" for m in scaled([LLM, ENCODER], *arguments)]

    usual = {"min": 1, "max": 3}
    assert bounds([]) == ["", ""]
    assert bounds(["0:4"]) == ["0:4", ""]
    assert bounds(["vectors=0:4"]) == ["", "0:4"]
    assert bounds([], usual) == ["1:3", ""]
    assert bounds(["0:4"], usual) == ["0:4", ""]
    assert bounds([], usual, {"big": 2}) == ["", ""]
    own = attrs.evolve(LLM, autoscale=Autoscale(least=0, most=9))
    assert scaled([own], [], usual)[0].autoscale == own.autoscale
    assert scaled([own], ["0:4"])[0].autoscale == Autoscale(least=0, most=4)


@pytest.mark.parametrize(
    ("models", "flags", "more", "message"),
    [
        ([LLM], ["0:4"], {"replicas": {"": 2}}, "--replicas and --autoscale are mutually exclusive"),
        ([LLM], ["big=0:4"], {"replicas": {"big": 2}}, "model 'big' has --replicas and --autoscale"),
        ([LLM], ["other=0:4"], {}, "names 'other'; models: big"),
        ([LLM], ["0:1", "0:2"], {}, "given twice for every LLM"),
        ([JOINED], ["0:4"], {}, "needs a model whose replicas run here"),
        ([JOINED], ["big=0:4"], {}, "joined servers, which are not started or stopped here"),
        ([LLM], ["0:4"], {"gateways": 2}, "needs a single gateway, not 2"),
        ([attrs.evolve(LLM, prefill_replicas=1)], ["0:1"], {}, "must be at least 2"),
    ],
)
def test_what_does_not_fit_together(models: Any, flags: Any, more: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        scaled(models, flags, **more)
    assert message in str(caught.value)


def test_memory_is_planned_for_the_most_and_one_is_started() -> None:
    models = scaled([LLM, ENCODER], ["0:4"])
    most = at_most(models)
    assert [m.count for m in most] == [4, 1]
    planned = [attrs.evolve(m, options={"kv_cache_gb": 1.0}) for m in most]
    started = at_start(planned, models)
    assert [m.count for m in started] == [1, 1]
    assert started[0].options == {"kv_cache_gb": 1.0}
    assert [m.count for m in at_start(most, [*scaled([LLM], ["big=2:4"]), ENCODER])] == [2, 1]


def test_prefill_and_decode_replicas_start_as_given() -> None:
    split = attrs.evolve(LLM, prefill_replicas=1, replicas=2)
    models = scaled([split], ["2:5"])
    (most,) = at_most(models)
    assert (most.prefill_replicas, most.replicas) == (2, 3)
    (started,) = at_start([most], models)
    assert (started.prefill_replicas, started.replicas) == (1, 2)
    with pytest.raises(InvalidRequest, match="--pd starts 3 replicas of 'big', outside of --autoscale 0:2"):
        at_start([most], scaled([split], ["0:2"]))
    with pytest.raises(InvalidRequest, match="not supported on accelerators"):
        at_start([attrs.evolve(most, devices={"big/0": (0,)})], models)
