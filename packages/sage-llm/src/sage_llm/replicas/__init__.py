"""Replicas of backends: in this process, in child processes over frames, or behind an OpenAI-compatible server."""
