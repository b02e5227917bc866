"""Several gateway processes in front of the same replicas."""
