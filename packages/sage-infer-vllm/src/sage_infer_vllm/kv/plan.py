"""Messages of the connector: what a request carries into the engine, and a step's copies for the workers."""

from __future__ import annotations

from attrs import frozen

__all__ = ["CONNECTOR", "FIRST_TOKEN", "FIRST_TOKEN_CLASS", "PARAMS", "PageLoad", "connector_config"]

PARAMS = "sage_infer"
"""Key in a request's ``kv_transfer_params``. Below it: ``hold`` (name), ``resume`` (name) with ``file`` for pages in
shared memory, or ``release`` (names)."""

FIRST_TOKEN = "sage_infer_first_token"
"""Key in a request's ``extra_args``: the token that its output must begin with."""

CONNECTOR = "SageKVConnector"
FIRST_TOKEN_CLASS = "sage_infer_vllm.kv.first_token:FirstToken"


def connector_config() -> dict[str, str]:
    """vLLM's ``kv_transfer_config`` for this connector."""
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": "sage_infer_vllm.kv.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }


@frozen
class PageLoad:
    """Pages to copy into ``blocks`` before a step computes: from ``held`` blocks of the same cache, or out of
    ``file`` from page ``first`` on.
    """

    blocks: tuple[int, ...]
    held: tuple[int, ...] = ()
    file: str = ""
    first: int = 0
