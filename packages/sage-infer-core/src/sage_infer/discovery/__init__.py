"""What is installed: plug-ins, the specs they return, and whether a backend can be opened here."""

from sage_infer.discovery.readiness import BackendInfo, Missing, State, backend_info
from sage_infer.discovery.registry import Entry, Fault, Plugin, Registry, discover, model_specs

__all__ = [
    "BackendInfo",
    "Entry",
    "Fault",
    "Missing",
    "Plugin",
    "Registry",
    "State",
    "backend_info",
    "discover",
    "model_specs",
]
