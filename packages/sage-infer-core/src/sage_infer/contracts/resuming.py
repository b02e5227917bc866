"""Contract of resuming a request on another instance after any number of output tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import DecodeState, RequestOptions

__all__ = ["HybridResuming", "Resuming"]


@runtime_checkable
class Resuming(Protocol):
    """Additional method of a backend that claims ``resume``."""

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        """Continue a request exactly where its output stopped, on any instance with the same weights.

        Pass one state per unfinished completion (``state.index``). All states have the same prompt, ``params``
        and ``seed``. ``output_token_ids`` are the tokens that the consumer has received, and ``delivered_chars``
        is the number of characters of their text that it has received.

        KV is not required: missing KV is recomputed. Penalties, constraints, ``min_tokens``, stop strings and
        the random number generator continue as if the request had not stopped. The stream starts after the
        delivered tokens and characters; its first delta may start with text that had been held back. Its
        ``usage`` covers the whole request: the original prompt and the whole output of these completions. Its
        ``finish_reason`` is that of the completion with the lowest index.

        Raises:
            InvalidRequest: there are no states; they belong to different requests; an index occurs twice or is
                not below ``n``; a state has finished or its output has reached ``max_tokens``; an output token is
                outside the vocabulary, violates the constraint or ends the output (the message names its
                position); or ``delivered_chars`` exceeds the length of the text.
            UnsupportedFeature: the backend does not claim ``resume``, or cannot continue exactly with these
                ``params``.
            CapabilityMismatch: a state belongs to another model or other weights, or exceeds
                ``max_sequence_length``.
            Overloaded, EngineDead: as for ``generate``.
        """
        ...


@runtime_checkable
class HybridResuming(Protocol):
    """The same for an instance with several models."""

    async def resume(
        self,
        states: Sequence[DecodeState],
        *,
        model: str | None = None,
        request_id: str,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        """Call ``Resuming.resume`` of the named model, or of the default model.

        Raises:
            ModelNotFound: no model has this name.
            UnsupportedFeature: the model's backend does not claim ``resume``.
        """
        ...
