"""One vLLM engine: processes, startup, statistics and capabilities."""
