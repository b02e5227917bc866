"""The embedded inference engine of sage-infer: OpenVINO kernels, our paged KV and scheduler."""
