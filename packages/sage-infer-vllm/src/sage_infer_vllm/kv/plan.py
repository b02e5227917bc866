"""Messages of the connector: what a request carries into the engine, and a step's copies for the workers."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from sage_infer_vllm.kv.arena import ArenaPlace

__all__ = [
    "CONNECTOR", "FIRST_TOKEN", "FIRST_TOKEN_CLASS", "FRONT_END", "PARAMS", "ArenaCopies", "PageLoad",
    "connector_config",
]  # fmt: skip

PARAMS = "sage_infer"
"""Key in a request's ``kv_transfer_params``. Below it: ``hold`` (name), ``resume`` (name) with ``file`` for pages in
shared memory, ``release`` (names), or ``stored`` (what ``kv.stored.prompt_of`` reads)."""

FIRST_TOKEN = "sage_infer_first_token"
"""Key in a request's ``extra_args``: the token that its output must begin with."""

FRONT_END = "sage_infer_front_end"
"""Key in ``kv_connector_extra_config``: requests come from the backend alone, so their parameters can be trusted."""

CONNECTOR = "SageKVConnector"
FIRST_TOKEN_CLASS = "sage_infer_vllm.kv.first_token:FirstToken"


def connector_config() -> dict[str, Any]:
    """vLLM's ``kv_transfer_config`` for this connector below the backend."""
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": "sage_infer_vllm.kv.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {FRONT_END: True},
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


@frozen
class ArenaCopies:
    """Copies between the cache and an arena in one step.

    Attributes:
        place: of the arena.
        step: number of the step, among those with copies.
        loads: slots and the blocks that they fill, before the step computes.
        saves: blocks and the slots that they fill, after it has computed.
    """

    place: ArenaPlace
    step: int
    loads: tuple[tuple[int, int], ...]
    saves: tuple[tuple[int, int], ...]
