"""NVIDIA GPUs, by NVML where they are, and by recorded output of NVIDIA's tools where they are not."""
