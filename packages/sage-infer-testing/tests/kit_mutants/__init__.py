"""Implementations with one fault each, and what the kit must say about it. ``docs/contract-kit.md`` lists them."""
