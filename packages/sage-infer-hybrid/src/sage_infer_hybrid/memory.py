"""Memory of a hybrid instance's machine: used by loaded models, and available for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.capability import SharingMode
from sage_infer_planning.estimate import Demand
from sage_infer_planning.memory_planner import Device, MemoryPlan, Share, demand_met, less, plan_memory

from sage_infer_hybrid.loaded import LoadedModel
from sage_infer_hybrid.machine import machine_devices
from sage_infer_hybrid.process_memory import held_bytes

__all__ = ["InstanceMemory"]


class InstanceMemory:
    """Plans around the models in ``loaded``, and measures their memory.

    ``profile`` is the machine; None: detect it on first use.
    """

    def __init__(
        self, mode: SharingMode, profile: HardwareProfile | None, loaded: Mapping[str, LoadedModel]
    ) -> None:
        self._mode: SharingMode = mode
        self._profile = profile
        self._loaded = loaded
        self._devices: tuple[Device, ...] | None = None
        self._empty: int | None = None  # bytes of the process before the first load

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices of the machine with known memory.

        Raises:
            BackendUnavailable: there are none.
        """
        if self._devices is None:
            self._devices = machine_devices(self._profile)
        return self._devices

    def plan(self) -> MemoryPlan:
        """Memory used per model and device."""
        shares = tuple(share for model in self._loaded.values() for share in model.shares)
        return MemoryPlan(mode=self._mode, devices=self.devices, shares=shares)

    def shares_for(self, demand: Demand, coming: Sequence[Demand]) -> tuple[Share, ...]:
        """Plan one model in addition to the loaded ones and to those to be loaded later (``coming``).

        Raises:
            OutOfMemory: they do not fit.
        """
        return self.plan_with([demand, *coming]).shares_of(demand.model_id)

    def plan_with(self, coming: Sequence[Demand]) -> MemoryPlan:
        """The plan with additional models.

        Memory that loaded models hold beyond their plan, as measured now, is not allocated again.

        Raises:
            OutOfMemory: they do not fit.
        """
        plan, measured = self.plan(), self.measured()
        left = [less(d, (measured[d.name] or 0) - plan.used(d.name)) for d in plan.devices]
        met = [demand_met(m.shares, m.weight, m.fraction) for m in self._loaded.values()]
        return plan_memory(left, [*met, *coming], self._mode)

    def held(self) -> int | None:
        """Current bytes of this process; the first call must precede loading."""
        now = held_bytes()
        if self._empty is None:
            self._empty = now
        return now

    def measured(self) -> dict[str, int | None]:
        """Current bytes of the models per device; None if they cannot be measured."""
        now = held_bytes()
        models = None if now is None or self._empty is None else max(now - self._empty, 0)
        return {device.name: models if device.name == "cpu" else None for device in self.devices}
