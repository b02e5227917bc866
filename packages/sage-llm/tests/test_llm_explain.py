"""Receipts of requests that were placed twice."""

from __future__ import annotations

from llm_cluster import cluster, instance, request
from sage_llm.policies.table import placement
from sage_llm.receipts import Receipts


def test_a_receipt_names_the_instance_that_was_lost() -> None:
    """The slot of the lost instance is empty, or another's, when the request is placed again."""
    receipts, policy = Receipts(), placement("kv-cost")
    first = receipts.place(policy, request(), cluster(instance(0), instance(1, queued_tokens=1e6)))
    assert first.slot == 0
    receipts.place(policy, request(excluded=1), cluster(instance(1)))
    shown = receipts["r"].to_json()
    assert shown["instance"] == "m/1"
    assert shown["earlier"] == [{"instance": "m/0", "decision": "dispatch"}]
