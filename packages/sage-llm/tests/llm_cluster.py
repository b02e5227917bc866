"""Snapshots of small clusters, descriptors and reports of instances, and hypothesis strategies of clusters."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport, KVCacheSchema
from sage_llm.types import Group, InstanceView, RequestView, Snapshot, Step

MODEL = "m"
BLOCK = 100


def any_speed(examples: int) -> settings:
    """Settings of property tests that also pass on a busy machine."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def instance(slot: int, **changes: Any) -> InstanceView:
    values = {"models": (MODEL,), "rate": 1000.0, **changes}
    return InstanceView(slot, f"{MODEL}/{slot}", **values)


def cluster(*views: InstanceView, kv: dict[int, int] | None = None, **changes: Any) -> Snapshot:
    """A snapshot of instances of one model; ``rho``, ``waiting`` and the like change its group."""
    of_group = {name: changes.pop(name) for name in list(changes) if name in attrs.fields_dict(Group)}
    usable = [view for view in views if view.state in ("ready", "probation")]
    whole = [view for view in usable if view.role != "prefill"] or usable
    groups = {}
    if usable:
        groups[MODEL] = Group(
            mask=sum(1 << view.slot for view in whole),
            least=tuple(v.slot for v in sorted(whole, key=lambda v: (v.queue_s, v.slot))),
            size=len(whole),
            fastest=max(v.rate for v in usable),
            rate=sum(v.rate for v in whole),
            shortest_s=min(v.queue_s for v in whole),
            adapters={
                name: sum(1 << v.slot for v in whole if name in v.adapters)
                for view in whole
                for name in view.adapters
            },
            prefill=sum(1 << view.slot for view in usable if view not in whole),
            **of_group,
        )
    at = {view.slot: view for view in views}
    by_slot = tuple(at.get(slot) for slot in range(max(at) + 1))
    return Snapshot(changes.pop("now", 0.0), by_slot, groups, kv or {}, **changes)


def request(blocks: int = 10, **changes: Any) -> RequestView:
    values = {"prompt_tokens": blocks * BLOCK, "keys": tuple(range(1, blocks + 1)), "block": BLOCK, **changes}
    return RequestView(values.pop("id", "r"), MODEL, **values)


def descriptor(name: str, generation: int = 1, role: Any = "general", **changes: Any) -> InstanceDescriptor:
    schema = KVCacheSchema(
        dtype="fp16", page_size=32, num_layers=2, num_heads=2, head_dim=8, scale_dtype="fp32", layout="paged"
    )
    capability = CapabilityDescriptor(
        backend_name="some",
        instance_type=role,
        hardware_backend="cpu",
        max_batch_size=64,
        max_sequence_length=8192,
        supported_precisions=("fp32",),
        kv_schema=schema,
    )
    return InstanceDescriptor(
        instance_id=name, generation=generation, model_ids=(MODEL,), capability=capability, **changes
    )


def report(name: str, seq: int = 1, generation: int = 1, **changes: Any) -> InstanceReport:
    values = {
        "taken_at": float(seq),
        "state": "ready",
        "running": 0,
        "waiting": 0,
        "kv_blocks_total": 100,
        "kv_blocks_free": 100,
    }
    return InstanceReport(instance_id=name, generation=generation, seq=seq, **{**values, **changes})


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Clusters of up to 6 instances with any state, load and KV."""
    count = draw(st.integers(1, 6))
    views = [
        instance(
            slot,
            state=draw(st.sampled_from(["ready", "ready", "ready", "probation", "suspect", "dead"])),
            role=draw(st.sampled_from(["general", "general", "prefill", "decode"])),
            rate=draw(st.sampled_from([500.0, 1000.0, 8000.0])),
            host=draw(st.sampled_from(["a", "b"])),
            queued_tokens=float(draw(st.integers(0, 5000))),
            running=draw(st.integers(0, 8)),
            open=draw(st.integers(0, 8)),
            open_limit=draw(st.sampled_from([0, 0, 0, 1, 4])),
            kv_total=(total := draw(st.sampled_from([0, 40, 100, 1000]))),
            kv_reserved=draw(st.integers(0, total)),
            tpot_limit=draw(st.sampled_from([0.0, 0.05])),
            step=draw(st.sampled_from([Step(), Step(0.02, 1e-4, 1e-3, 1e-6)])),
            cost_per_hour=draw(st.sampled_from([0.0, 1.0, 2.5])),
            kv_token_bytes=draw(st.sampled_from([0.0, 1e5])),
            adapters=draw(st.sampled_from([(), ("x",)])),
            reported_at=draw(st.sampled_from([0.0, 99.9])),
        )
        for slot in range(count)
    ]
    depths = [draw(st.integers(0, 10)) for _ in range(count)]
    kv = {
        key: mask
        for key in range(1, 11)
        if (mask := sum(1 << slot for slot, depth in enumerate(depths) if depth >= key))
    }
    lower = (
        ({key: draw(st.integers(0, (1 << count) - 1)) for key in range(1, 11)},)
        if draw(st.booleans())
        else ()
    )
    return cluster(
        *views,
        kv=kv,
        lower=lower,
        now=100.0,
        kv_valid=draw(st.integers(0, (1 << count) - 1)),
        rho=draw(st.floats(0, 2)),
        decisions=draw(st.integers(0, 100)),
        places=draw(st.sampled_from([{}, {"s": 0}])),
    )


@st.composite
def requests(draw: st.DrawFn) -> RequestView:
    return request(
        draw(st.integers(0, 10)),
        id=draw(st.text(max_size=4)),
        max_tokens=draw(st.integers(0, 3000)),
        out_q50=float(draw(st.integers(0, 500))),
        session=draw(st.sampled_from(["", "s", "t"])),
        excluded=draw(st.integers(0, 7)),
        adapter=draw(st.sampled_from(["", "", "x"])),
        slo_ttft=draw(st.sampled_from([None, 0.5, 5.0])),
        slo_tpot=draw(st.sampled_from([None, 0.05])),
        may_split=draw(st.booleans()),
    )
