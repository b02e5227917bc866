"""Checks of a vendor's stack for ``sage infer doctor --vendor NAME``: the classes, and ready-made checks."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "Check", "Finding", "Machine", "Part", "Severity", "VendorChecks", "as_version", "communication", "device_files",
    "interfaces", "local_address", "locked_memory", "mounted", "one_platform", "rdma_devices", "releases", "run_checks",
    "same_release", "shared_memory", "sourced", "visible_devices",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer.sdk.diagnosis.devices import device_files, mounted, sourced, visible_devices
    from sage_infer.sdk.diagnosis.findings import Check, Finding, Part, Severity, VendorChecks
    from sage_infer.sdk.diagnosis.machine import Machine
    from sage_infer.sdk.diagnosis.network import (
        communication,
        interfaces,
        local_address,
        locked_memory,
        rdma_devices,
        shared_memory,
    )
    from sage_infer.sdk.diagnosis.running import run_checks
    from sage_infer.sdk.diagnosis.versions import as_version, one_platform, releases, same_release

_HOMES = {
    "Check": "findings", "Finding": "findings", "Machine": "machine", "Part": "findings", "Severity": "findings",
    "VendorChecks": "findings", "as_version": "versions", "communication": "network", "device_files": "devices",
    "interfaces": "network", "local_address": "network", "locked_memory": "network", "mounted": "devices",
    "one_platform": "versions", "rdma_devices": "network", "releases": "versions", "run_checks": "running",
    "same_release": "versions", "shared_memory": "network", "sourced": "devices", "visible_devices": "devices",
}  # fmt: skip
__getattr__ = lazy_exports(__name__, _HOMES)
