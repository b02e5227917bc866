"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import DetectorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(
            name="nvidia",
            factory="sage_infer_cuda.detector:NvidiaDetector",
            hardware={"cuda"},
            requires={"nvidia-ml-py": ">=12.535"},
            # The second is NVML inside WSL 2, which has no NVIDIA device nodes.
            device_nodes=("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libnvidia-ml.so.1"),
            read_recording="sage_infer_cuda.recordings:read",
            checks="sage_infer_cuda.checks:CHECKS",
            summary="NVIDIA GPUs through NVML; recordings of nvidia-smi and NCCL topologies",
        )
    ]
