"""Where replicas run: the flags and settings of executors."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.errors import BackendUnavailable, InvalidRequest, SageInferError, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor
from sage_llm.commands.config import LLM
from sage_llm.commands.executors import (
    check_executor,
    make_executor,
    on_cluster,
    parse_amounts,
    with_ray_address,
)
from sage_llm.manager.models import ServedModel
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.replicas.net.server import NETWORK_SERVER

RAY = LLM(executor="ray")


def served(name: str, backend: str = "openai", **changes: Any) -> ServedModel:
    descriptor = ModelDescriptor(model_id=name, model_type="llm", model_path="/" + name)
    return ServedModel(descriptor=descriptor, backend=backend, **changes)


def test_amounts() -> None:
    assert parse_amounts(["2", "a=0.5"], "--gpus") == {"": 2.0, "a": 0.5}
    for wrong in ("", "a=", "-1", "inf", "nan", "a=x"):
        with pytest.raises(InvalidRequest, match="--gpus must be N or MODEL=N"):
            parse_amounts([wrong], "--gpus")


def test_models_on_a_cluster() -> None:
    models = [served("a", environment={"COLOUR": "blue"}, memory_gb=2.0), served("b", cpus=3.0)]
    one, other = on_cluster(models, RAY, cpus={"a": 4.0}, gpus={"": 0.5})
    assert (one.cpus, one.gpus, one.memory_gb, other.cpus, other.gpus) == (4.0, 0.5, 2.0, 3.0, 0.5)
    assert one.server == other.server == NETWORK_SERVER
    assert one.environment["COLOUR"] == "blue"
    assert len(one.environment[TOKEN_VARIABLE]) > 40
    assert one.environment[TOKEN_VARIABLE] == other.environment[TOKEN_VARIABLE]
    (again,) = on_cluster([served("a")], RAY)
    assert again.environment[TOKEN_VARIABLE] != one.environment[TOKEN_VARIABLE]
    (spec,) = one.specs
    assert (spec.cpus, spec.gpus, spec.memory_gb, spec.server) == (4.0, 0.5, 2.0, NETWORK_SERVER)


def test_threads_are_the_reserved_cpus() -> None:
    default, several, chosen = on_cluster(
        [
            served("a", "openvino"),
            served("b", "openvino", cpus=3.5),
            served("c", "openvino", options={"threads": 7}),
        ],
        RAY,
    )
    assert [model.options["threads"] for model in (default, several, chosen)] == [1, 3, 7]


def test_this_machine_reserves_nothing() -> None:
    models = [served("a")]
    assert on_cluster(models, LLM()) == models
    for amounts in ({"cpus": {"": 1.0}}, {"gpus": {"a": 1.0}}):
        with pytest.raises(InvalidRequest, match="belongs to an executor on a cluster"):
            on_cluster(models, LLM(), **amounts)
    with pytest.raises(InvalidRequest, match="--gpus names 'c'; models: a"):
        on_cluster(models, RAY, gpus={"c": 1.0})
    with pytest.raises(InvalidRequest, match="executor_options"):
        check_executor(LLM(executor_options={"place_s": 1}))
    with pytest.raises(UnsupportedFeature, match="--pd is not supported with --executor ray"):
        check_executor(attrs.evolve(RAY, pd="1:1"))
    check_executor(LLM(pd="1:1"))


def test_the_address_belongs_to_ray() -> None:
    assert with_ray_address(LLM(), None) == LLM()
    found = with_ray_address(LLM(executor="ray", executor_options={"place_s": 5.0}), "head:6379")
    assert found.executor_options == {"place_s": 5.0, "address": "head:6379"}
    with pytest.raises(InvalidRequest, match="belongs to --executor ray"):
        with_ray_address(LLM(), "head:6379")


def test_executors_by_name() -> None:
    assert isinstance(make_executor(LLM()), LocalExecutor)
    with pytest.raises(BackendUnavailable, match="no executor 'none-such'"):
        make_executor(LLM(executor="none-such"))
    with pytest.raises(SageInferError):  # without the wheel, without Ray, or because it has no such option
        make_executor(LLM(executor="ray", executor_options={"none-such": 1}))
