"""The memory of a hybrid instance's machine: what loaded models have of it, and what is left for another."""

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
    """Plans with what the models in ``loaded`` have, and measures what they hold.

    ``profile`` is the machine, None to ask it when it is first needed.
    """

    def __init__(
        self, mode: SharingMode, profile: HardwareProfile | None, loaded: Mapping[str, LoadedModel]
    ) -> None:
        self._mode: SharingMode = mode
        self._profile = profile
        self._loaded = loaded
        self._devices: tuple[Device, ...] | None = None
        self._empty: int | None = None  # bytes that the process held before anything was loaded

    @property
    def devices(self) -> tuple[Device, ...]:
        """Those of the machine with known memory.

        Raises:
            BackendUnavailable: there are none.
        """
        if self._devices is None:
            self._devices = machine_devices(self._profile)
        return self._devices

    def plan(self) -> MemoryPlan:
        """Who has what of which device."""
        shares = tuple(share for model in self._loaded.values() for share in model.shares)
        return MemoryPlan(mode=self._mode, devices=self.devices, shares=shares)

    def shares_for(self, demand: Demand, coming: Sequence[Demand]) -> tuple[Share, ...]:
        """What a model gets beside those that are loaded, and those that are ``coming`` after it.

        Raises:
            OutOfMemory: they do not fit.
        """
        return self.plan_with([demand, *coming]).shares_of(demand.model_id)

    def plan_with(self, coming: Sequence[Demand]) -> MemoryPlan:
        """The plan with further models beside those that are loaded.

        What the loaded ones hold beyond their plan, as measured now, is not allocated again.

        Raises:
            OutOfMemory: they do not fit.
        """
        plan, measured = self.plan(), self.measured()
        left = [less(d, (measured[d.name] or 0) - plan.used(d.name)) for d in plan.devices]
        met = [demand_met(m.shares, m.weight, m.fraction) for m in self._loaded.values()]
        return plan_memory(left, [*met, *coming], self._mode)

    def held(self) -> int | None:
        """Bytes that this process holds now; the first time is taken to be before anything is loaded."""
        now = held_bytes()
        if self._empty is None:
            self._empty = now
        return now

    def measured(self) -> dict[str, int | None]:
        """Bytes that the models hold of each device now; None where that cannot be measured."""
        now = held_bytes()
        models = None if now is None or self._empty is None else max(now - self._empty, 0)
        return {device.name: models if device.name == "cpu" else None for device in self.devices}
