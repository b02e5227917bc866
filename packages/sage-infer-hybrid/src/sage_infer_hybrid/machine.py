"""The devices of this machine, for the planner."""

from __future__ import annotations

from sage_infer.errors import BackendUnavailable
from sage_infer.schemas import HardwareProfile
from sage_infer_planning.memory_planner import Device, devices_of

__all__ = ["machine_devices"]


def machine_devices(profile: HardwareProfile | None) -> tuple[Device, ...]:
    """Devices with known memory, from ``profile`` or from the installed detectors.

    Raises:
        BackendUnavailable: the machine's memory is unknown.
    """
    if profile is None:
        from sage_infer_hal.machine import detect_machine

        profile = detect_machine()
    devices = devices_of(profile)
    if not devices:
        notes = f" ({'; '.join(profile.notes)})" if profile.notes else ""
        raise BackendUnavailable(
            f"no detector reports this machine's memory{notes}; pip install sage-infer-host-hal, and the detector of "
            "its accelerators"
        )
    return devices
