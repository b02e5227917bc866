"""Sums, shares and metrics of several gateways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sage_infer_serve.http.auth import APIKey, KeyLimits
from sage_llm.commands.gateways import summed
from sage_llm.gateways.metrics import merged
from sage_llm.gateways.shares import key_shares, tenant_shares
from sage_llm.quotas import TenantQuota


def page(requests: int) -> bytes:
    registry = CollectorRegistry()
    Counter("requests", 'With "quotes" and\na line.', ["model"], registry=registry).labels('a"b').inc(
        requests
    )
    Histogram("wait", "Seconds.", registry=registry, buckets=(1.0, 2.0)).observe(1.5)
    return generate_latest(registry)


def test_metrics_of_all_gateways_on_one_page() -> None:
    families = {
        f.name: f for f in text_string_to_metric_families(merged({"0": page(3), "1": page(4)}).decode())
    }
    values = {
        s.labels["gateway"]: s.value for s in families["requests"].samples if s.name == "requests_total"
    }
    assert values == {"0": 3.0, "1": 4.0}
    assert {s.labels["model"] for s in families["requests"].samples} == {'a"b'}
    assert families["wait"].type == "histogram"
    assert len([s for s in families["wait"].samples if s.name == "wait_bucket"]) == 6


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_all_gateways_together_keep_a_limit(limit: int, gateways: int) -> None:
    key = APIKey("k", b"d" * 32, KeyLimits(requests_per_minute=limit))
    (share,) = key_shares([key], gateways)
    assert share.limits.concurrency is None
    part = share.limits.requests_per_minute
    assert part is not None
    assert limit <= part * gateways < limit + gateways
    quota = tenant_shares({"t": TenantQuota(max_requests=limit)}, gateways)["t"]
    assert (quota.max_requests, quota.max_kv_tokens) == (part, 0)


def test_requests_are_summed_and_replicas_are_those_of_the_owner() -> None:
    def cluster(running: int, state: str = "ready") -> dict[str, object]:
        row = {"instance": "m/0", "state": state, "running": running, "queued_tokens": 2, "migrated_in": 0,
               "migrated_out": 1, "served": 5, "pid": 7}  # fmt: skip
        return {
            "instances": [], "replicas": [row], "requests": {"open": running, "finished": 1}, "tenants": {},
            "calls": {"open": 0, "embed": {"finished": running}},
        }  # fmt: skip

    found = summed(cluster(0, "draining"), [cluster(2), cluster(3)])
    assert found["requests"] == {"open": 5, "finished": 2}
    assert found["calls"] == {"open": 0, "embed": {"finished": 5}}
    (row,) = found["replicas"]
    assert (row["state"], row["running"], row["served"], row["pid"]) == ("draining", 5, 10, 7)
    assert summed(cluster(0), [])["requests"] == {"open": 0, "finished": 1}


def test_a_port_that_gateways_share_is_not_shared_with_others() -> None:
    from sage_infer.errors import ConfigError
    from sage_infer_serve.server import listen, reserve
    from sage_infer_serve.settings import GatewaySettings

    with reserve(GatewaySettings(port=0)) as kept:
        settings = GatewaySettings(port=kept.getsockname()[1])
        with listen(settings, shared=True), listen(settings, shared=True):
            for other in (listen, reserve):
                with pytest.raises(ConfigError, match="in use"):
                    other(settings)
