"""The decoding engine: scheduler, KV blocks, sampling, and the engine thread."""
