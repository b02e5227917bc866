"""A backend in memory whose models' states and memory a test writes down, for what the dashboard shows of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import field, frozen
from gateway_backend import EchoBackend
from sage_infer.contracts import Metric, ModelStatus

GIB = 2**30


@frozen(kw_only=True)
class Device:
    name: str
    total: int
    usable: int


@frozen(kw_only=True)
class Share:
    model_id: str
    device: str
    weights: int = 0
    kv: int = 0
    activations: int = 0
    overhead: int = 0

    @property
    def planned(self) -> int:
        return self.weights + self.kv + self.activations + self.overhead


@frozen(kw_only=True)
class Plan:
    mode: str = "time_slice"
    devices: tuple[Device, ...] = (Device(name="cpu", total=16 * GIB, usable=12 * GIB),)
    shares: tuple[Share, ...] = field(
        default=(
            Share(model_id="echo", device="cpu", weights=4 * GIB, kv=2 * GIB, activations=GIB),
            Share(model_id="vectors", device="cpu", weights=GIB, overhead=GIB // 2),
        )
    )

    def used(self, device: str) -> int:
        return sum(share.planned for share in self.shares if share.device == device)


class DashboardBackend(EchoBackend):
    """See the module.

    Attributes:
        states: models that are not simply ready: state, since (in seconds since the epoch) and reason.
        plan: who is to have what of which device.
        measured: what each model takes.
        kv: what the engine of echo says about its KV store.
        instances, scaling: rows of the cluster, as a control plane reports them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, ModelStatus] = {}
        self.plan = Plan()
        self.measured: dict[str, int | None] = {"echo": 6 * GIB, "vectors": GIB}
        self.kv: dict[str, float] = {}  # of the model echo
        self.instances: list[dict[str, Any]] = []
        self.scaling: list[dict[str, Any]] = []

    def get_model_status(self, model_id: str) -> ModelStatus:
        return self.states.get(model_id) or super().get_model_status(model_id)

    def metrics(self) -> Iterator[Metric]:
        for name, value in self.kv.items():
            full = f"sage_infer_engine_kv_store_{name}"
            yield Metric(name=full, kind="gauge", help="KV", value=value, labels={"model": "echo"})

    def cluster(self) -> dict[str, Any]:
        return {
            "instances": [],
            "replicas": self.instances,
            "requests": {"open": 3, "migrations": 2},
            "scaling": self.scaling,
        }

    def memory_plan(self) -> Plan:
        return self.plan

    def measured_bytes(self) -> dict[str, int | None]:
        return self.measured
