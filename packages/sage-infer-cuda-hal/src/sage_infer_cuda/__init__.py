"""NVIDIA GPUs: of this machine through NVML, and of other machines from recorded output of NVIDIA's tools."""
