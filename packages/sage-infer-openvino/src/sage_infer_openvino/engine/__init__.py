"""From requests to tokens: the scheduler, KV blocks, sampling, and the thread that runs a decoder."""
