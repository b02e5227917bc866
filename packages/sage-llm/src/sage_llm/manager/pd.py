"""Prefill on one instance, decode on another: the hand-over of a request between them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from attrs import field, frozen
from sage_infer.compat import TaskCancelled, result_of, wait_for
from sage_infer.contracts import KVTransfer, TokenStream
from sage_infer.errors import BackendUnavailable, EngineDead, RequestCancelled, SageInferError
from sage_infer.plugins import find_plugin, require_ready
from sage_infer.schemas import DecodeState, TransportSettings
from sage_infer.sdk.claims import accepted_options

from sage_llm.manager.classify import as_sage_error
from sage_llm.manager.live_instance import Attempt, LiveInstance
from sage_llm.manager.migration import open_stream
from sage_llm.manager.placing import Placement
from sage_llm.manager.request import ManagedRequest
from sage_llm.receipts import Transfer
from sage_llm.replicas.hand_over import STORE, flush_kv
from sage_llm.tasks import Tasks

__all__ = ["HandOverSettings", "HandOvers"]

_HOLD_S = 60.0  # after which an instance frees a prefill that nobody fetches
_RELEASE_S = 5.0

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class HandOverSettings:
    """How KV moves between replicas.

    Attributes:
        transport: name of the transport, or ``store``: the KV store that both replicas use.
        settings: its settings.
    """

    transport: str = "local"
    settings: TransportSettings = field(factory=TransportSettings)


@frozen
class _Moved:
    """A request whose KV is at the instance that continues it."""

    state: DecodeState
    transfer: Transfer


class HandOvers:
    """Opens the streams of requests whose prompt another instance computes.

    Whatever goes wrong before the first token, the decode instance computes the prompt itself: only its own loss ends
    the attempt. The prefill instance keeps nothing of a request that was handed over, cancelled or given up.

    Attributes:
        done, given_up: number of requests handed over, and of those that the decode instance computed after all.
        nbytes, seconds: sums over the requests handed over: bytes moved, and the duration of moving and importing them.

    Args:
        on_failed: called with a prefill instance and its error.
    """

    def __init__(
        self,
        placement: Placement,
        settings: HandOverSettings,
        on_failed: Callable[[LiveInstance, SageInferError], object],
    ) -> None:
        self.done = self.given_up = self.nbytes = 0
        self.seconds = 0.0
        self._placement, self._settings, self._on_failed = placement, settings, on_failed
        self._tasks = Tasks()

    async def check_transport(self) -> None:
        """Log a warning if KV cannot move between processes, because the transport is not ready here.

        Requests are answered all the same: decode replicas compute the prompts themselves.
        """
        if self._settings.transport == STORE:
            return
        try:
            await asyncio.to_thread(_find_transport, self._settings.transport)
        except BackendUnavailable as error:
            log.warning("no KV moves between replicas, decode replicas compute prompts themselves: %s", error)

    async def open(
        self, request: ManagedRequest, attempt: Attempt, source: LiveInstance
    ) -> TokenStream | None:
        """The stream of a request whose prompt ``source`` computes; None if the attempt's instance must compute it.

        Raises:
            EngineDead: the attempt's instance was lost.
            RequestCancelled: the request's deadline has passed.
        """
        prefill = Attempt(attempt.number, source, attempt.request_id, request.prompt_tokens, is_prefill=True)
        source.add(prefill)
        attempt.awaits_kv = True
        moving = asyncio.ensure_future(self._move(request, attempt, source))
        prefill.cancel = moving.cancel  # called when the source is lost
        why = f"{source.instance_id} was lost"
        try:
            moved = await result_of(moving)
            if isinstance(moved, _Moved):
                stream = await self._decode(request, attempt, moved.state)
                self.done += 1
                self.nbytes += moved.transfer.nbytes
                self.seconds += moved.transfer.seconds
                self._placement.receipts.transferred(request.request_id, moved.transfer)
                return stream
            why = moved
        except TaskCancelled:
            pass
        except Exception as raised:
            error = as_sage_error(raised, attempt.instance.instance_id)
            if isinstance(error, EngineDead) or _is_late(error):
                raise
            why = f"its KV did not reach {attempt.instance.instance_id}: {error}"
        finally:
            attempt.awaits_kv = False
            source.attempts.pop(attempt.request_id, None)
            source.left()
            self._placement.prefilled(request)
            self._tasks.spawn(_release(source, attempt.request_id))
        await attempt.instance.backend.abort(attempt.request_id)  # what has been imported
        if not self.given_up:
            log.warning(
                "request %s: %s, so %s computed the prompt; `sage llm explain` shows this for further requests",
                request.request_id, why, attempt.instance.instance_id,
            )  # fmt: skip
        self.given_up += 1
        self._placement.computes_itself(request)
        self._placement.receipts.given_up(request.request_id, why)
        return None

    async def _move(self, request: ManagedRequest, attempt: Attempt, source: LiveInstance) -> _Moved | str:
        """Compute the prompt on ``source``, and move its KV to the attempt's instance.

        Returns why not: ``source`` has failed, or its KV in the store would not be found.
        """
        if self._settings.transport == STORE and (why := _not_shared(source, attempt.instance)):
            return why
        began = time.monotonic()
        try:
            state, buffers = await self._prefill(request, attempt, source)
        except Exception as raised:
            error = as_sage_error(raised, source.instance_id)
            if _is_late(error):
                raise error from None
            self._on_failed(source, error)
            return f"{source.instance_id}: {error}"
        prefilled = time.monotonic()
        if self._through_store(state):  # fetched by the engine there, as of any prompt
            return _Moved(state, Transfer(0, 0.0, prefilled - began))
        state, nbytes = await self._fetch(state, buffers, attempt.instance)
        return _Moved(state, Transfer(nbytes, time.monotonic() - prefilled, prefilled - began))

    def _through_store(self, state: DecodeState) -> bool:
        return self._settings.transport == STORE and state.finish_reason is None

    async def _decode(self, request: ManagedRequest, attempt: Attempt, state: DecodeState) -> TokenStream:
        target = attempt.instance
        if self._through_store(state):
            return cast(TokenStream, await open_stream(request, attempt))
        options = accepted_options(target.features, request.options_now())
        found = await target.backend.decode(state, request_id=attempt.request_id, options=options)
        return cast(TokenStream, found.stream)

    async def _prefill(
        self, request: ManagedRequest, attempt: Attempt, source: LiveInstance
    ) -> tuple[DecodeState, list[memoryview] | None]:
        """Compute the prompt on ``source``, and publish its KV. In this process, it is returned instead."""
        backend = source.backend
        result = await backend.prefill(
            [request.prompt],
            request_id=attempt.request_id,
            params=request.params,
            options=accepted_options(source.features, request.options_now()),
            hold_s=_HOLD_S,
        )
        source.produced()
        state: DecodeState = result.states[0]
        if state.finish_reason is not None:
            return state, []  # the first token was the last one
        if hasattr(backend, "publish_kv"):
            return await backend.publish_kv(state, transport=self._settings.transport), None
        if self._settings.transport == STORE:
            await flush_kv(backend)
            return state, []
        return await cast(KVTransfer, backend).export_kv(state)

    async def _fetch(
        self, state: DecodeState, buffers: list[memoryview] | None, target: LiveInstance
    ) -> tuple[DecodeState, int]:
        """Move the KV of a state to ``target``; also returns the number of bytes."""
        if state.finish_reason is not None:
            return state, 0
        if buffers is None:
            found: tuple[DecodeState, int] = await target.backend.fetch_kv(
                state, transport=self._settings.transport, settings=self._settings.settings
            )
            return found
        imported = await cast(KVTransfer, target.backend).import_kv(state, buffers)
        return imported, sum(buffer.nbytes for buffer in buffers)

    async def close(self) -> None:
        """Wait until prefill instances have freed what they hold."""
        await self._tasks.wait()


def _find_transport(name: str) -> None:
    require_ready(find_plugin(name, "transport"))


def _not_shared(source: LiveInstance, target: LiveInstance) -> str:
    """Why KV that one instance has stored is not found by another one; empty if it is, or nothing is known."""
    spaces = {source.descriptor.key_space, target.descriptor.key_space}
    if None in spaces or len(spaces) == 1:
        return ""
    theirs, ours = source.descriptor.capability.kv_schema, target.descriptor.capability.kv_schema
    differs = () if theirs is None or ours is None else theirs.compatible_with(ours).conversions
    return (
        f"{target.instance_id} does not find the KV that {source.instance_id} stores, because they differ in "
        f"{' and '.join(differs) or 'weights or precision'}; the transports local and tcp convert pages"
    )


def _is_late(error: SageInferError) -> bool:
    return isinstance(error, RequestCancelled) and error.by == "deadline"


async def _release(source: LiveInstance, request_id: str) -> None:
    """Free what an instance holds of a request, as far as it still listens."""
    backend = source.backend
    free = backend.release_kv if hasattr(backend, "release_kv") else backend.abort
    with suppress(SageInferError, TimeoutError, OSError):  # a lost instance frees it by itself
        await wait_for(free(request_id), _RELEASE_S)
