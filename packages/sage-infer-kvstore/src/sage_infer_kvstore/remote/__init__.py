"""Blocks on a Valkey or Redis server, shared by processes and hosts."""
