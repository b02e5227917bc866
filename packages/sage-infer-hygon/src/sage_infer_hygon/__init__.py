"""Hygon DCU: a detector that reads ``hy-smi``, and Hygon's own build of vLLM."""
