"""Requests and steps as vLLM's scheduler shows them to a connector, for tests without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sage_infer.contracts import block_keys
from sage_infer.schemas import KVCacheSchema
from sage_infer_vllm.kv.plan import PARAMS, ArenaCopies
from sage_infer_vllm.kv.scheduler_side import SchedulerSide

__all__ = ["KEYS", "SCHEMA", "SIZE", "TOKENS", "WAIT_S", "page", "plan", "request", "step"]

SCHEMA = KVCacheSchema.from_preset("fp16", num_layers=1, num_heads=1, head_dim=8, page_size=4)
SIZE = SCHEMA.bytes_per_page
TOKENS = list(range(100, 118))  # four pages and two tokens
KEYS = list(block_keys("model", SCHEMA, TOKENS))
WAIT_S = 120.0


def page(key: bytes) -> bytes:
    return key * (SIZE // 16)


def request(name: str, tokens: list[int], stored: dict[str, Any] | None = None, **more: Any) -> Any:
    return SimpleNamespace(
        request_id=name, num_prompt_tokens=len(tokens), prompt_token_ids=list(tokens), all_token_ids=list(tokens),
        num_tokens=len(tokens), skip_reading_prefix_cache=False, status=SimpleNamespace(name="FINISHED_STOPPED"),
        kv_transfer_params=None if stored is None else {PARAMS: {"stored": stored}}, lora_request=None, mm_features=[],
        pooling_params=None, prompt_embeds=None, cache_salt=None, **more,
    )  # fmt: skip


def step(
    *scheduled: tuple[Any, int, int],
    new: bool = False,
    blocks: list[int] | None = None,
    resumed: bool = False,
) -> Any:
    """A step: requests, their computed tokens, and the tokens that it computes."""
    names = [request.request_id for request, _, _ in scheduled]
    computed = [count for _, count, _ in scheduled]
    fresh = [SimpleNamespace(req_id=n, num_computed_tokens=c) for n, c in zip(names, computed, strict=True)]
    return SimpleNamespace(
        scheduled_new_reqs=fresh if new else [],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[] if new else names, num_computed_tokens=[] if new else computed,
            new_block_ids=[] if new else [None if blocks is None else (blocks,)] * len(names),
            resumed_req_ids=set(names) if resumed else set(),
        ),
        num_scheduled_tokens={request.request_id: count for request, _, count in scheduled},
        total_num_scheduled_tokens=sum(count for _, _, count in scheduled),
    )  # fmt: skip


def plan(side: SchedulerSide, taken: Any) -> ArenaCopies | None:
    return side.copies(taken, side.saves(taken))
