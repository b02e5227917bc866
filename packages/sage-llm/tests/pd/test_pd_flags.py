"""`--pd` and `--kv-transport` of `sage llm serve`."""

from __future__ import annotations

import attrs
import pytest
from sage_infer.errors import BackendUnavailable, InvalidRequest
from sage_infer.schemas import ModelDescriptor, TransportSettings
from sage_llm.commands import pd_flags
from sage_llm.commands.config import LLM
from sage_llm.commands.pd_flags import (
    check_policy,
    check_store,
    check_transport,
    check_whole,
    parse_pd,
    parse_transport,
    with_pd,
)
from sage_llm.commands.serving import manager_settings
from sage_llm.manager.models import ServedModel
from toy_engine import toy_model


def test_pd() -> None:
    assert parse_pd(None) is None
    assert parse_pd("") is None
    assert parse_pd("2:6") == (2, 6)
    for wrong in ("1", "0:1", "1:0", "a:b", "1:1:1", "-1:1"):
        with pytest.raises(InvalidRequest, match="--pd must be P:D"):
            parse_pd(wrong)


def test_models_get_their_roles() -> None:
    encoder = ServedModel(
        descriptor=ModelDescriptor(model_id="e", model_type="embedding", model_path="/e"), backend="b"
    )
    llm, other = with_pd([toy_model(), encoder], (1, 2))
    assert [(spec.replica_id, spec.role) for spec in llm.specs] == [
        ("toy/p0", "prefill"),
        ("toy/0", "decode"),
        ("toy/1", "decode"),
    ]
    assert [spec.role for spec in other.specs] == ["general"]
    with pytest.raises(InvalidRequest, match="--pd belongs to an LLM"):
        with_pd([encoder], (1, 1))


def test_kv_through_a_store_needs_one() -> None:
    models = with_pd([toy_model()], (1, 1))
    check_store(models, "local")
    with pytest.raises(InvalidRequest, match=r"'toy' share, such as -o 'kv_store="):
        check_store(models, "store")
    check_store([attrs.evolve(one, options={"kv_store": "paged"}) for one in models], "store")


def test_prefill_replicas_have_options_of_their_own() -> None:
    model = attrs.evolve(toy_model(), options={"seed": 1}, prefill_options={"kv_schema": {"page_size": 64}})
    (found,) = with_pd([model], (1, 1), ["max_batch_size=2", 'kv_schema={"page_size": 128}'])
    assert [spec.options for spec in found.specs] == [
        {"seed": 1, "max_batch_size": 2, "kv_schema": {"page_size": 128}},
        {"seed": 1},
    ]
    check_store([found], "local")
    with pytest.raises(InvalidRequest, match="of 'toy' need the same kv_schema: KV is stored"):
        check_store([attrs.evolve(found, options={"kv_store": "paged"})], "store")
    with pytest.raises(InvalidRequest, match="kv_cache_gb of prefill replicas cannot differ"):
        with_pd([model], (1, 1), ["kv_cache_gb=1"])
    with pytest.raises(InvalidRequest, match="--prefill-option must be KEY=VALUE, got 'x'"):
        with_pd([model], (1, 1), ["x"])
    with pytest.raises(InvalidRequest, match="prefill_options of 'toy' need prefill replicas"):
        check_whole([model])
    with pytest.raises(InvalidRequest, match="--prefill-option needs prefill replicas"):
        check_whole([toy_model()], ["max_batch_size=2"])
    check_whole([toy_model(), found])


def test_policies() -> None:
    assert check_policy("kv-cost", is_given=False) == "pd"
    assert check_policy("pd:min_tokens=16", is_given=True) == "pd:min_tokens=16"
    for policy, given in (("kv-cost", True), ("round-robin", False)):
        with pytest.raises(InvalidRequest, match=f"policy '{policy}' places no prefill"):
            check_policy(policy, is_given=given)


def test_transports_reach_the_manager() -> None:
    assert parse_transport(None) == (None, {})
    assert parse_transport("tcp") == ("tcp", {})
    assert parse_transport("preset=low-latency,chunk_bytes=65536") == (
        None,
        {"transport.preset": "low-latency", "transport.chunk_bytes": 65536},
    )
    assert parse_transport("tcp,preset=low-cost") == ("tcp", {"transport.preset": "low-cost"})
    with pytest.raises(
        InvalidRequest, match=r"no preset 'nixl'; presets: high-bw.* such as nixl or nixl,preset="
    ):
        parse_transport("preset=nixl")
    with pytest.raises(InvalidRequest, match="--kv-transport must be"):
        parse_transport("=1")
    wanted = TransportSettings.from_preset("low-latency")
    found = manager_settings(LLM(kv_transport="tcp"), None, wanted).hand_over
    assert (found.transport, found.settings) == ("tcp", wanted)


def test_transports_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("local", "tcp", "store"):
        check_transport(name)
    with pytest.raises(InvalidRequest, match=r"no KV transport 'owl'; transports: local, .*tcp, store"):
        check_transport("owl")
    monkeypatch.setattr(pd_flags, "list_plugins", lambda kind: [])
    with pytest.raises(
        BackendUnavailable, match="'nixl' is not installed; to fix: pip install sage-infer-nixl"
    ):
        check_transport("nixl")
