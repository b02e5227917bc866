"""OpenVINO's properties for a device."""

from __future__ import annotations

import pytest
from sage_infer_openvino import device
from sage_infer_openvino.device import latency_properties


@pytest.mark.parametrize(
    ("name", "asked", "paid_for", "threads"),
    [
        ("CPU", None, 8, None),  # OpenVINO keeps to the affinity mask by itself
        ("CPU", None, 3, 3),
        ("CPU", 5, 3, 5),  # the user knows better
        ("GPU.0", None, 3, None),
    ],
)
def test_threads_are_no_more_than_the_quota_pays_for(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: int | None, paid_for: int, threads: int | None
) -> None:
    monkeypatch.setattr(device, "usable_cpus", lambda: range(8))
    monkeypatch.setattr(device, "usable_threads", lambda: paid_for)
    assert latency_properties(name, "f32", asked).get("INFERENCE_NUM_THREADS") == threads


def test_only_a_cpu_is_asked_to_keep_fewer_kernels() -> None:
    """Other plug-ins refuse a property that they do not know."""
    assert "CPU_RUNTIME_CACHE_CAPACITY" in latency_properties("CPU", "f32", None)
    assert "CPU_RUNTIME_CACHE_CAPACITY" not in latency_properties("GPU", "f32", None)
