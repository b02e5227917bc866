"""Hygon as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform

from sage_infer_hygon.needs import ENGINE

__all__ = ["HYGON"]

HYGON = Platform(
    backend_name="hygon",
    engine=ENGINE,
    hardware_backend="hygon",
    visible_devices="HIP_VISIBLE_DEVICES",
    sources={
        "engine": "wheels of the developers' community: vllm-0.18.1+das.dtk2604",
        "visible_devices": "HIP, which DTK is built on",
    },
)
