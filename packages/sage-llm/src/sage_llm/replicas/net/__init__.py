"""Replicas that other machines reach: the port of a replica, and the proof that both ends know its token."""
