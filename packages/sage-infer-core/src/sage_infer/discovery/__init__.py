"""Installed plug-ins, the specs they return, and whether their contents can be used on this machine."""

from sage_infer.discovery.faults import Fault
from sage_infer.discovery.info import BackendInfo, PluginInfo, State, backend_info, plugin_info
from sage_infer.discovery.kinds import KINDS, KindName
from sage_infer.discovery.readiness import Missing
from sage_infer.discovery.registry import Entry, Plugin, Registry, discover, model_specs

__all__ = [
    "KINDS",
    "BackendInfo",
    "Entry",
    "Fault",
    "KindName",
    "Missing",
    "Plugin",
    "PluginInfo",
    "Registry",
    "State",
    "backend_info",
    "discover",
    "model_specs",
    "plugin_info",
]
