"""From requests to tokens: scheduler, KV blocks, sampling, and the decoder thread."""
