"""``export_kv`` and ``import_kv``: KV as buffers, through memory that the engine's worker shares."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from sage_infer.errors import CapabilityMismatch, InvalidRequest, Overloaded, UnsupportedFeature
from sage_infer.schemas import DecodeState, RequestOptions

from sage_infer_vllm.disaggregation.instance import Instance
from sage_infer_vllm.handover.held import Held
from sage_infer_vllm.handover.states import States
from sage_infer_vllm.handover.tail import clear_tail
from sage_infer_vllm.kv.host_pages import HostPages
from sage_infer_vllm.requests.sampling import check_params

__all__ = ["check_state", "export_kv", "import_kv"]

_CALL_BYTES = 16 * 2**20  # of one copy out of the engine, which computes nothing meanwhile
_RETRY_S = 1.0


async def export_kv(on: Instance, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
    on.check_claimed("kv_export")
    states = on.states
    states.check(state)
    _check_adapter(state)
    if state.finish_reason is not None:
        return state, []
    held = on.find(state)
    buffers = await _read(on, held) if held.pages is None else _pages(held.pages, states)
    if not on.running.held.has(held):
        raise InvalidRequest(f"the KV of request {state.request_id!r} was freed during its export")
    return await asyncio.to_thread(_leaving, on.states, state, buffers), buffers


async def _read(on: Instance, held: Held) -> list[memoryview]:
    """The pages of the engine's blocks, copied between its steps."""
    size = on.states.schema.bytes_per_page
    pages = await asyncio.to_thread(HostPages, size * len(held.blocks))
    try:
        at_once = max(_CALL_BYTES // size, 1)
        for first in range(0, len(held.blocks), at_once):
            blocks = list(held.blocks[first : first + at_once])
            await on.running.call_workers("sage_read_pages", pages.file, first, blocks)
    finally:
        pages.close()
    return _pages(pages, on.states)


def _leaving(states: States, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
    schema = states.schema
    filled = len(state.prompt_token_ids) % schema.page_size
    if filled:
        clear_tail(buffers[-1], schema, filled)
    return states.exported(state, buffers)


def check_state(on: Instance, state: DecodeState) -> None:
    """Reject a state that ``import_kv`` would reject whatever its buffers."""
    on.check_claimed("kv_import")
    on.check_claims(state.params, RequestOptions())
    on.states.check(state)
    _check_adapter(state)
    check_params(state.params, max_logprobs=on.running.max_logprobs)
    _check_tokens(on, state)


async def import_kv(on: Instance, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
    check_state(on, state)
    running, states = on.running, on.states
    if state.finish_reason is not None:
        return states.imported(state)
    running.check_ids([state.request_id])
    size = states.schema.bytes_per_page * -(-len(state.prompt_token_ids) // states.schema.page_size)
    _check_import(on, size)
    pages = await asyncio.to_thread(_copied, states, state, buffers, size)
    try:
        _check_import(on, size)  # others may have come meanwhile
        running.check_ids([state.request_id])
    except BaseException:
        pages.close()
        raise
    salt = "" if states.has_own_keys(state) else secrets.token_hex(16)
    held = Held(
        request_id=state.request_id,
        tokens=state.prompt_token_ids + state.output_token_ids,
        salt=salt,
        cached_tokens=states.cached_tokens(state),
        pages=pages,
    )
    running.held.add(held, on.hold_s)
    return states.imported(state, salt.encode())


def _check_import(on: Instance, nbytes: int) -> None:
    limit, taken = on.running.engine.kv_bytes, on.running.held.imported_bytes
    if taken + nbytes > limit:
        raise Overloaded(
            f"imported KV takes {taken} bytes, and {nbytes} more exceed the limit of {limit}, the size of the KV "
            "cache; decode or abort imported requests first",
            retry_after=_RETRY_S,
        )


def _check_tokens(on: Instance, state: DecodeState) -> None:
    running, prompt = on.running, state.prompt_token_ids
    largest = max(*prompt, *state.output_token_ids)
    if largest >= running.vocab_size:
        raise InvalidRequest(
            f"the state of request {state.request_id!r} has token id {largest}; expected 0 to "
            f"{running.vocab_size - 1}"
        )
    if len(prompt) + 2 > running.max_sequence_length and state.finish_reason is None:
        raise CapabilityMismatch(
            f"the sequence of request {state.request_id!r} has {len(prompt) + 1} tokens, and the limit here is "
            f"{running.max_sequence_length} with at least one more; raise max_sequence_length"
        )
    if state.kv_tokens not in (None, len(prompt)):
        raise InvalidRequest(
            f"the state of request {state.request_id!r} has KV of {state.kv_tokens} of its {len(prompt)} prompt "
            "tokens; this backend imports whole prompts"
        )


def _check_adapter(state: DecodeState) -> None:
    if state.params.adapter is not None:
        raise UnsupportedFeature(
            f"KV that was computed with adapter {state.params.adapter!r} stays in its engine: another one may have "
            "other weights under this name"
        )


def _pages(pages: HostPages, states: States) -> list[memoryview]:
    size = states.schema.bytes_per_page
    return [pages.view[start : start + size] for start in range(0, pages.nbytes, size)]


def _copied(states: States, state: DecodeState, buffers: Sequence[memoryview], size: int) -> HostPages:
    """The verified pages of a state, in this instance's format."""
    blocks, converter = states.verified(state, buffers), states.converter(state)
    pages = HostPages(size)
    try:
        if converter is not None:
            converter.convert(blocks, len(state.prompt_token_ids), _pages(pages, states))
        else:
            for page, block in zip(_pages(pages, states), blocks, strict=True):
                page[:] = block
    except BaseException:
        pages.close()
        raise
    return pages
