"""Blocks on disk, in append-only segments."""
