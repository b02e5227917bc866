"""Hugging Face transformers for sage-infer; ``plugin`` is the entry point."""
