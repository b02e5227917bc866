"""Contract of continuing a request on another instance after any number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import DecodeState, RequestOptions

__all__ = ["Resuming"]


@runtime_checkable
class Resuming(Protocol):
    """Additional method of a backend that claims ``resume``."""

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        """Continue one request exactly where its output stopped, on any instance with the same weights.

        One state per completion that has not finished (``state.index``); all have the same prompt,
        ``params`` and ``seed``. ``output_token_ids`` are the tokens that the consumer has, any number of
        them, and ``delivered_chars`` is the number of characters of their text that it has. No KV is needed:
        what is not in a cache is computed again. Penalties, constraints, ``min_tokens``, stop strings and
        the random stream continue as if the request had never stopped. The stream's deltas begin after the
        tokens and characters that were delivered; the first one may begin with text that was held back. Its
        ``usage`` is of the whole request: the original prompt, and the output of these completions including
        the tokens given. Its ``finish_reason`` is that of the lowest index.

        Raises:
            InvalidRequest: no states, states of different requests, an index given twice or not below ``n``,
                a state that has finished, or an output that already reached ``max_tokens``; tokens that are
                not in the vocabulary, break the constraint or end the output (the message names the position);
                or more characters delivered than the tokens have.
            UnsupportedFeature: the backend does not claim ``resume``, or cannot continue these ``params``
                exactly.
            CapabilityMismatch: the state is of another model or of other weights, or does not fit into
                ``max_sequence_length``.
            Overloaded, EngineDead: as for ``generate``.
        """
        ...
