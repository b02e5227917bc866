"""Blocks in fewer bits, in any store."""
