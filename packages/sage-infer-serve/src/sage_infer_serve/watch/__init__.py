"""Health, metrics, traces and the dashboard."""
