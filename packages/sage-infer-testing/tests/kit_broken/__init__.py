"""Implementations with one mistake each, and the contract tests that must find it."""
