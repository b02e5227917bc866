"""One vLLM engine: its processes, its start, what it reports and what it can do."""
