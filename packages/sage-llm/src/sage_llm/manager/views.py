"""What policies see of a managed request, and what follows from a decision about it."""

from __future__ import annotations

from typing import Any

from sage_infer.errors import (
    EngineDead,
    InvalidRequest,
    Overloaded,
    PluginFailed,
    RequestCancelled,
    SageInferError,
)
from sage_infer.schemas import RequestOptions

from sage_llm.chains import ChainStep
from sage_llm.classifier import RequestClassifier
from sage_llm.index.kv_index import KVIndex
from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.request import ManagedRequest
from sage_llm.types import Decision, RequestView

__all__ = ["MIGRATED", "beyond_expected", "call_view", "refusal", "request_view"]

MIGRATED = -1_000_000
"""Band of requests that continue, ahead of all new ones."""

_RETRY_S = 1.0
_UNKNOWN_OUTPUT = 2048  # tokens expected at most of a request without max_tokens


def request_view(
    request: ManagedRequest,
    longest: int,
    classifier: RequestClassifier,
    index: KVIndex,
) -> RequestView:
    """The present view of a request: its prompt and output so far are what an instance would compute.

    ``longest`` is the length limit of the model's instances in tokens; 0 if unknown.
    """
    options, params, ledger = request.options, request.params, request.ledger
    done = max([len(record.token_ids) for record in ledger.records])
    tokens = request.prompt_tokens + ledger.tokens
    wanted = _UNKNOWN_OUTPUT if params.max_tokens is None else params.max_tokens - done
    room = max(longest - tokens, 0) if longest else wanted
    most = max(min(wanted, room), 0) * params.n
    classified = request.classified
    if classified is None:
        slo = options.slo
        classified = request.classified = classifier.classify(
            request.model_id,
            prompt_tokens=request.prompt_tokens,
            max_tokens=most,
            priority=options.priority,
            service_class=options.service_class,
            tenant=options.tenant,
            session=options.session,
            ttft_s=None if slo is None else slo.ttft_s,
            tpot_s=None if slo is None else slo.tpot_s,
        )
    keys: tuple[int, ...] = ()
    if ledger.prompt is not None:
        known = (*ledger.prompt, *ledger.records[0].token_ids) if done else ledger.prompt
        salt, adapter = options.cache_salt.encode(), params.adapter or ""
        keys = index.keys(request.model_id, known, salt=salt, adapter=adapter)
    return RequestView(
        id=request.request_id,
        model=request.model_id,
        prompt_tokens=tokens,
        max_tokens=most,
        reserve=classified.reserve if classified.reserve < 0 else min(classified.reserve, most),
        arrived=request.arrived,
        band=MIGRATED if ledger.has_started and not request.is_paused else classified.band,
        tenant=options.tenant,
        session=options.session,
        service_class=classified.service_class,
        turn=classified.turn,
        deadline=_deadline(request.step, request.arrived, options),
        slo_ttft=classified.ttft_s,
        slo_tpot=classified.tpot_s,
        out_q50=classified.out_q50,
        out_q90=classified.out_q90,
        keys=keys,
        block=index.block(request.model_id) or 1,
        adapter=params.adapter or "",
        chain=options.chain,
        attempts=request.number,
        may_split=not (done or params.n > 1 or params.adapter or request.prompt.media),
        **_in_chain(request.step),
    )


def call_view(call: ManagedCall, classifier: RequestClassifier) -> RequestView:
    """The present view of an embedding or reranking request."""
    options = call.options
    classified = call.classified
    if classified is None:
        slo = options.slo
        classified = call.classified = classifier.classify(
            call.model_id,
            kind=call.kind,
            prompt_tokens=call.prompt_tokens,
            max_tokens=0,
            priority=options.priority,
            service_class=options.service_class,
            ttft_s=None if slo is None else slo.ttft_s,
        )
    return RequestView(
        id=call.request_id,
        model=call.model_id,
        kind=call.kind,
        prompt_tokens=call.prompt_tokens,
        arrived=call.arrived,
        band=classified.band,
        tenant=options.tenant,
        session=options.session,
        service_class=classified.service_class,
        deadline=_deadline(call.step, call.arrived, options),
        slo_ttft=classified.ttft_s,
        chain=options.chain,
        attempts=call.number,
        **_in_chain(call.step),
    )


def _deadline(step: ChainStep | None, arrived: float, options: RequestOptions) -> float | None:
    if step is not None and step.deadline is not None:
        return step.deadline
    return None if options.deadline is None else arrived + options.deadline


def _in_chain(step: ChainStep | None) -> dict[str, Any]:
    """Fields of a view about the request's chain."""
    if step is None:
        return {}
    return {
        "chain_step": step.index,
        "chain_since": step.since,
        "left_s": step.left_s,
        "expected_s": step.expected_s,
        "later": step.later,
    }


def beyond_expected(request: ManagedRequest | ManagedCall, view: RequestView) -> float:
    """Output tokens since the request was dispatched, less those that were expected and charged then."""
    if isinstance(request, ManagedCall):
        return 0.0
    before = view.prompt_tokens - request.prompt_tokens
    return request.ledger.tokens - before - view.out_q50


def refusal(decision: Decision) -> SageInferError:
    """The error of a refused request."""
    if decision.reason in ("overloaded", "quota"):
        return Overloaded(decision.message, retry_after=decision.retry_after or _RETRY_S)
    if decision.reason == "too_large":
        return InvalidRequest(decision.message)
    if decision.reason == "late":
        return RequestCancelled(decision.message, by="deadline")
    return (PluginFailed if decision.reason == "fault" else EngineDead)(decision.message)
