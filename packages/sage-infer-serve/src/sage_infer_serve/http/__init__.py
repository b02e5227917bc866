"""Requests, answers, connections and API keys; knows no endpoint."""
