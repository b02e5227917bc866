"""Attacks on a server: requests that are too large, too many, too slow or malformed."""
