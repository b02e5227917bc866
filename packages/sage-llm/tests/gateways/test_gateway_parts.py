"""Sums, shares and metrics of several gateways."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sage_infer_serve.http.auth import APIKey, KeyLimits
from sage_infer_serve.http.errors import HTTPError
from sage_llm.commands.gateways import summed
from sage_llm.gateways.messages import Uses
from sage_llm.gateways.metrics import merged
from sage_llm.gateways.shares import EXCHANGE_S, SharedKey, Use, kv_shares, shared_keys, tenant_shares
from sage_llm.gateways.uses import UseBoard
from sage_llm.quota_tree import KVQuota
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
def test_all_gateways_together_keep_a_quota(limit: int, gateways: int) -> None:
    quota = tenant_shares({"t": TenantQuota(max_requests=limit)}, gateways)["t"]
    assert limit <= quota.max_requests * gateways < limit + gateways
    assert quota.max_kv_tokens == 0
    part = quota.max_requests
    tree = {"t": KVQuota(ceiling=limit, parts={"m": KVQuota(reserved=limit, borrow=False)})}
    assert kv_shares(tree, gateways) == {
        "t": KVQuota(ceiling=part, parts={"m": KVQuota(reserved=part, borrow=False)})
    }


class Together:
    """Gateways with one key, in simulated time; ``exchange`` is what their owner does."""

    def __init__(self, gateways: int, **limits: int) -> None:
        self.now = 0.0
        self.keys = [
            SharedKey("k", b"d" * 32, KeyLimits(**limits), clock=lambda: self.now, gateways=gateways)
            for _ in range(gateways)
        ]
        self.board = UseBoard(gateways)

    def exchange(self) -> None:
        for number, key in enumerate(self.keys):
            self.board.reported(number, {"k": key.use()})
        for number in range(len(self.keys)):
            self.board.tell(number, partial(self.heard, number))
        self.now += EXCHANGE_S

    def heard(self, number: int, uses: Uses) -> bool:
        self.keys[number].take_over(uses.uses["k"], is_past=uses.is_past)
        return True

    def admitted(self, number: int, tries: int) -> int:
        """How many of so many requests a gateway accepts now."""
        accepted = 0
        for _ in range(tries):
            with suppress(HTTPError):
                self.keys[number].admit()
                accepted += 1
        return accepted


def test_one_connection_has_the_whole_limit_after_some_exchanges() -> None:
    gateways = Together(4, requests_per_minute=60)
    accepted = []
    for _ in range(20):
        accepted.append(gateways.admitted(2, 100))
        gateways.exchange()
    assert accepted[0] == 15  # its part of a full minute
    assert 60 <= sum(accepted) <= 62  # and two seconds of the rate
    assert gateways.admitted(0, 9) <= 1  # the others know


def test_open_requests_are_counted_together() -> None:
    gateways = Together(2, concurrency=4)
    assert gateways.admitted(0, 9) == 2
    gateways.exchange()
    assert gateways.admitted(0, 9) == 1
    gateways.exchange()
    assert (gateways.admitted(1, 9), gateways.admitted(0, 9)) == (
        1,
        1,
    )  # each the last one, in the same moment
    gateways.exchange()
    for _ in range(2):
        gateways.keys[0].release()
    assert gateways.admitted(1, 9) == 0  # does not know yet
    gateways.exchange()
    assert gateways.admitted(1, 9) == 1


def test_tokens_are_counted_together() -> None:
    gateways = Together(2, tokens_per_minute=600)
    assert gateways.admitted(0, 1) == 1
    gateways.keys[0].charge(900)
    assert gateways.admitted(0, 1) == 0
    assert gateways.admitted(1, 1) == 1  # before the exchange
    gateways.exchange()
    assert gateways.admitted(1, 1) == 0
    gateways.now += 31.0
    assert gateways.admitted(1, 1) == 1


@any_speed(100)
@given(
    st.integers(1, 6),
    st.integers(1, 120),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=30),
)
def test_all_gateways_together_keep_a_rate(count: int, limit: int, tries: list[tuple[int, int]]) -> None:
    gateways = Together(count, requests_per_minute=limit)
    accepted = 0
    for number, requests in tries:
        accepted += gateways.admitted(number % count, requests)
        gateways.exchange()
    assert accepted <= limit + limit * gateways.now / 60 + count


def test_a_gateway_that_was_restarted_knows_the_others() -> None:
    gateways = Together(2, requests_per_minute=60, concurrency=8)
    assert gateways.admitted(0, 3) == 3
    assert gateways.admitted(1, 2) == 2
    gateways.exchange()
    gateways.board.ended(1)
    gateways.heard(0, Uses({"k": Use(2, 0, 0)}))
    assert gateways.keys[0].open_elsewhere == 0
    past = gateways.board.started(1)
    assert past == Uses({"k": Use(5, 0, 3)}, is_past=True)  # its own earlier requests are past as well
    gateways.keys[1] = SharedKey(
        "k", b"d" * 32, gateways.keys[0].limits, clock=lambda: gateways.now, gateways=2
    )
    gateways.heard(1, past)
    assert gateways.keys[1].open_elsewhere == 3
    told: list[Uses] = []
    gateways.board.tell(1, lambda uses: bool(told.append(uses)))  # nothing is news
    assert not told
    gateways.board.reported(0, {"k": Use(4, 0, 4)})
    gateways.board.tell(1, lambda uses: bool(told.append(uses)))  # it does not read
    gateways.board.tell(1, lambda uses: not told.append(uses))
    assert told == [Uses({"k": Use(6, 0, 4)})] * 2
    gateways.board.tell(1, lambda uses: bool(told.append(uses)))
    assert len(told) == 2


def test_keys_without_limits_are_not_exchanged() -> None:
    key = APIKey("free", b"d" * 32)
    assert shared_keys([key], 4) == (key,)
    (shared,) = shared_keys([APIKey("k", b"d" * 32, KeyLimits(concurrency=3))], 4)
    assert isinstance(shared, SharedKey)
    assert (shared.name, shared.limits.concurrency, shared.gateways) == ("k", 3, 4)


def test_requests_are_summed_and_replicas_are_those_of_the_owner() -> None:
    def cluster(running: int, state: str = "ready") -> dict[str, object]:
        row = {"instance": "m/0", "state": state, "running": running, "queued_tokens": 2, "migrated_in": 0,
               "migrated_out": 1, "served": 5, "pid": 7}  # fmt: skip
        return {
            "instances": [], "replicas": [row], "requests": {"open": running, "finished": 1}, "tenants": {},
            "quotas": {"t": {"used": running}}, "calls": {"open": 0, "embed": {"finished": running}},
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
