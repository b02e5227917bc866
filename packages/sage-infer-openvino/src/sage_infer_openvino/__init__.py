"""The embedded inference engine of sage-infer: OpenVINO kernels with our own paged KV cache and scheduler."""
