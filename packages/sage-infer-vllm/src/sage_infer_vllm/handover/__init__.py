"""Prefill and decode apart: held KV, its states, and KV that comes from or goes to other instances."""
