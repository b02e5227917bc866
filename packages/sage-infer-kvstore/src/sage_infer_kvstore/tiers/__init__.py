"""Memory over a slower store."""
