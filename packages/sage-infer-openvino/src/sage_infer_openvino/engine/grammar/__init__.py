"""Guided decoding: constraints are compiled in turn, and tested in a child process first."""
