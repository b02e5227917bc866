"""Requests, responses, connections and API keys, independent of endpoints."""
