"""Start of a request on an instance, and its continuation on another one: exactly, or with an error that says why."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import attrs
from attrs import frozen
from sage_infer.contracts import TokenStream
from sage_infer.errors import SageInferError
from sage_infer.schemas import Prompt, RequestOptions, SamplingParams
from sage_infer.sdk.claims import accepted_options

from sage_llm.manager.ledger import Ledger
from sage_llm.manager.live_instance import Attempt
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.rewound import Rewound
from sage_llm.replicas.openai.completion import ServerStream

__all__ = [
    "MigrationBudget",
    "NotMigratable",
    "PoisonRequest",
    "open_stream",
    "RecoveryLimits",
    "replay_obstacle",
    "with_seed",
]

_WINDOW_S = 10.0
_PARTIAL = "\ufffd"  # the text of a part of a character
_LONGEST_CHARACTER = 8  # tokens; emoji of several code points are delivered one by one


@frozen(kw_only=True)
class RecoveryLimits:
    """Limits of recovery.

    Attributes:
        migrations: maximum number of moves of one request.
        wait_s: maximum time that a request waits for an instance while all are lost or restarting.
        settle_s: time after a crash in which nothing is dispatched.
    """

    migrations: int = 3
    wait_s: float = 60.0
    settle_s: float = 0.05


class NotMigratable(SageInferError):
    """The instance of a started request was lost, and no other instance can continue its output exactly."""

    code = "not_migratable"


class PoisonRequest(SageInferError):
    """The request ran on several instances that crashed, the last time alone."""

    code = "poison_request"


class MigrationBudget:
    """Limits migrations, so that a failing cluster is not overloaded by its own recovery.

    Args:
        share: migrations per accepted request.
        burst: further migrations, and those of all open requests once, in ten seconds.
    """

    def __init__(self, share: float = 0.1, burst: int = 16) -> None:
        self._share, self._burst = share, burst
        self._used, self._updated = 0.0, time.monotonic()

    def accepted(self) -> None:
        """Record an accepted request."""
        self._used = max(0.0, self._used - self._share)

    def spend(self, open_requests: int) -> bool:
        """Take one migration; False if the budget is used up."""
        limit, now = self._burst + open_requests, time.monotonic()
        self._used = max(0.0, self._used - limit * (now - self._updated) / _WINDOW_S)
        self._updated = now
        if self._used + 1 > limit:
            return False
        self._used += 1
        return True


def with_seed(params: SamplingParams, features: Collection[str], seed: int) -> SamplingParams:
    """The parameters with a seed, if the request samples without one and its engine can be resumed with it."""
    if params.seed is None and params.temperature > 0 and {"seed", "resume"} <= set(features):
        return _seeded(params, seed)
    return params


def _seeded(params: SamplingParams, seed: int) -> SamplingParams:
    """A copy with a seed. ``attrs.evolve`` would check all fields again, for each request."""
    found: SamplingParams = object.__new__(SamplingParams)
    for name in _PARAMETERS:
        object.__setattr__(found, name, getattr(params, name))
    object.__setattr__(found, "seed", seed)
    return found


_PARAMETERS = tuple(one.name for one in attrs.fields(SamplingParams))


def replay_obstacle(ledger: Ledger) -> str:
    """Why sending prompt and output as a new prompt would not continue the output exactly; empty if it would."""
    params = ledger.params
    if params.temperature > 0 and params.seed is not None:
        return "it is seeded"
    for name in ("guided", "presence_penalty", "frequency_penalty", "stop", "logprobs"):
        value = getattr(params, name)
        if value not in (None, 0.0, ()):
            return f"it sets {name}"
    return "it has several completions" if params.n > 1 else ""


async def open_stream(request: ManagedRequest, attempt: Attempt) -> Any:
    """Start a request on an instance, or continue its output there; returns the stream."""
    instance, options = attempt.instance, request.options_now()
    if attempt.span.carrier is not None:
        options = attrs.evolve(options, trace=attempt.span.carrier)
    options = accepted_options(instance.features, options)
    if request.ledger.has_started:
        return await continue_stream(
            instance.backend,
            request.ledger,
            request_id=attempt.request_id,
            model_id=request.model_id,
            instance_id=instance.instance_id,
            features=instance.features,
            options=options,
        )
    if request.chat is not None:
        stream = await request.chat.open(instance.backend, request.params, attempt.request_id, options)
    else:
        (stream,) = await instance.backend.generate(
            [request.prompt], request.params, request_id=attempt.request_id, options=options
        )
    if isinstance(stream, ServerStream) and request.prompt.token_ids is None:
        if request.chat is None or not request.chat.tools:
            stream.on_prompt(request.ledger.learn_prompt)
        else:
            request.ledger.obstacle = "its server parses tool calls, whose position in the text is unknown"
    return stream


async def continue_stream(
    backend: Any,
    ledger: Ledger,
    *,
    request_id: str,
    model_id: str,
    instance_id: str,
    features: Collection[str],
    options: RequestOptions | None,
) -> TokenStream:
    """Continue the request of a ledger that has started, on ``backend``.

    Raises:
        NotMigratable: the output cannot be continued exactly; the message says why.
    """
    if ledger.obstacle:
        raise NotMigratable(_message(request_id, model_id, ledger.obstacle))
    if "resume" in features:
        states = ledger.states(request_id, model_id, instance_id)
        stream: TokenStream = await backend.resume(states, request_id=request_id, options=options)
        return stream
    obstacle = replay_obstacle(ledger)
    done = None if obstacle else await _delivered(backend, ledger, features)
    if done is None:
        why = obstacle or "it is unknown how much of its text was delivered"
        raise NotMigratable(_message(request_id, model_id, f"{why}, and the engine does not claim resume"))
    record, params = ledger.records[0], ledger.params
    rest = attrs.evolve(
        params,
        max_tokens=None if params.max_tokens is None else params.max_tokens - done,
        min_tokens=max(params.min_tokens - done, 0),
    )
    prompt = Prompt(token_ids=(*(ledger.prompt or ()), *record.token_ids[:done]))
    (stream,) = await backend.generate([prompt], rest, request_id=request_id, options=options)
    repeated = len(record.token_ids) - done
    return Rewound(stream, repeated) if repeated else stream


async def _delivered(backend: Any, ledger: Ledger, features: Collection[str]) -> int | None:
    """Number of output tokens whose text was delivered; None if unknown.

    The last tokens of a greedy output may be part of a character. They are generated again, as their text is missing.
    """
    if "tokenize" not in features:
        return None
    ids, chars = list(ledger.records[0].token_ids), ledger.records[0].chars
    text = await backend.detokenize(ids)
    if len(text) == chars:
        return len(ids)
    if ledger.params.temperature > 0 or len(text.rstrip(_PARTIAL)) != chars:
        return None
    for done in range(len(ids) - 1, max(len(ids) - _LONGEST_CHARACTER, 0) - 1, -1):
        text = await backend.detokenize(ids[:done]) if done else ""
        if len(text) == chars and not text.endswith(_PARTIAL):
            return done
    return None


def _message(request_id: str, model_id: str, why: str) -> str:
    return f"request {request_id} lost its instance of model {model_id!r} and cannot be continued: {why}; send it again"
