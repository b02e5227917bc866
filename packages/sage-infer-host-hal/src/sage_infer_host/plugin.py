"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import DetectorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="host",
            factory="sage_infer_host.detector:HostDetector",
            hardware={"cpu"},
            summary="processors, NUMA nodes, memory and disks, from /proc and /sys",
        )
    ]
