"""States of prefilled requests, for engines: the chunks of a prompt, and the checks before KV of a state is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sage_infer.contracts import KeyChain, key_space
from sage_infer.errors import BackendUnavailable, CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import DecodeState, KVCacheSchema, KVChunk, KVLocation, SamplingParams, TokenLogprob
from sage_infer.sdk.checksums import checksum, verify
from sage_infer.sdk.kv_formats import Cast, KVPageConverter

__all__ = ["KVStates", "checked_hold", "first_logprob", "kv_prompt", "logprob_as_json"]


@attrs.frozen(kw_only=True)
class KVStates:
    """Makes and checks the states of one instance.

    Attributes:
        backend: name of the backend, under which its states keep what is private to it (``DecodeState.extensions``).
        model_id: the model's id.
        kv_model: name of the weights and of what else changes their KV, such as the precision; for keys of KV.
        weights_id: ``weights_id_of`` the model's files; empty if unknown.
        instance_id: id of this instance.
        schema: schema of its KV cache.
        cast: converts between float types, for states of other engines; see ``KVPageConverter``.
    """

    backend: str
    model_id: str
    kv_model: str
    weights_id: str
    instance_id: str
    schema: KVCacheSchema
    cast: Cast | None = None

    @property
    def key_space(self) -> str:
        """Identity of the key space of unsalted blocks, shared by instances with equal KV."""
        return key_space(self.kv_model, self.schema)

    def key_chain(self, salt: bytes = b"") -> KeyChain:
        """Return an empty chain of the keys in ``KVChunk.chunk_id`` and every ``KVStore``."""
        return KeyChain(self.kv_model, self.schema, salt=salt)

    def extensions(self, *, salted: bool, **more: Any) -> dict[str, Any]:
        """Return the ``DecodeState.extensions`` of a state made here; ``more`` is what the engine adds."""
        return {self.backend: {"key_space": self.key_space, "salted": salted, **more}}

    def own(self, state: DecodeState) -> Mapping[str, Any]:
        """Return what a backend of this name wrote into the state; empty for others."""
        found = state.extensions.get(self.backend)
        return found if isinstance(found, dict) else {}

    def chunks(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, salt: bytes = b""
    ) -> tuple[KVChunk, ...]:
        """Return the chunks of a prompt's KV in this instance: one per page, with its location."""
        return tuple(
            attrs.evolve(chunk, location=self._location(request_id, i))
            for i, chunk in enumerate(self._chunks(self.schema, request_id, prompt, params, salt))
        )

    def check_model(self, state: DecodeState) -> None:
        """Reject a state of another model.

        Raises:
            CapabilityMismatch: the model's name differs, or the weights differ and both sides know them.
        """
        if state.model_id != self.model_id:
            raise CapabilityMismatch(
                f"the state belongs to model {state.model_id!r}, but {self.model_id!r} is loaded here"
            )
        if state.weights_id and self.weights_id and state.weights_id != self.weights_id:
            raise CapabilityMismatch(
                f"the state belongs to model {state.model_id!r} with the weights {state.weights_id}, but this instance "
                f"has {self.weights_id}; use the same model files in both instances"
            )

    def check(self, state: DecodeState) -> None:
        """Reject a state that this instance cannot continue after prefill.

        Raises:
            CapabilityMismatch: of another model, other weights, or a KV format that cannot be converted.
            InvalidRequest: it is not a state after prefill.
        """
        self.check_model(state)
        if state.kv_schema is None:
            raise CapabilityMismatch(
                f"the state of request {state.request_id!r} has no KV, which decode requires; prefill it here"
            )
        known = bool(state.weights_id and self.weights_id)
        theirs = self.own(state).get("key_space")
        # Scales of the whole cache do not travel: an instance with other settings may have others.
        is_scaled = "tensor" in (self.schema.scale_granularity, self.schema.value_scale_granularity)
        if (is_scaled or not known) and theirs not in (None, self.key_space):
            raise CapabilityMismatch(
                f"the state belongs to model {state.model_id!r} with other weights, or computed in another precision; "
                "both instances need the same model files and settings"
            )
        fit = state.kv_schema.compatible_with(self.schema)
        if not fit.compatible:
            raise CapabilityMismatch(f"the state's KV does not match this instance: {fit.reason}")
        if fit.conversions:
            if not known:
                whose = "this instance" if state.weights_id else "the state"
                raise CapabilityMismatch(
                    f"the state's KV has another format ({', '.join(fit.conversions)}), and {whose} does not name its "
                    "weights (weights_id); conversion requires equal weights"
                )
            self.converter(state)
        if state.params.n != 1 or len(state.output_token_ids) != 1:
            raise InvalidRequest(
                f"the state of request {state.request_id!r} has {state.params.n} completions and "
                f"{len(state.output_token_ids)} output tokens, expected one of each after prefill"
            )

    def converter(self, state: DecodeState) -> KVPageConverter | None:
        """Return what converts the pages of a checked state to this instance's schema; None if they are equal.

        Raises:
            CapabilityMismatch: no conversion is known, or a codec is missing.
        """
        if state.kv_schema is None or not self._is_converted(state):
            return None
        try:
            return KVPageConverter(state.kv_schema, self.schema, cast=self.cast)
        except BackendUnavailable as error:
            raise CapabilityMismatch(
                f"the state's KV does not match this instance: {error.message}; install the wheel of the engine that "
                "computed it, which has the codec"
            ) from error

    def has_own_keys(self, state: DecodeState) -> bool:
        """Return whether the state's chunks have the same unsalted keys as in this instance."""
        own = self.own(state)
        return (
            own.get("key_space") == self.key_space and not own.get("salted") and not self._is_converted(state)
        )

    def exported(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """Return the exported state: chunks are identified by content, without a location."""
        chunks = [
            attrs.evolve(chunk, checksum=checksum(buffer), location=None)
            for chunk, buffer in zip(state.chunks, buffers, strict=True)
        ]
        return attrs.evolve(state, chunks=chunks)

    def verified(self, state: DecodeState, buffers: Sequence[memoryview]) -> list[memoryview]:
        """Return the buffers as bytes, after checks of each buffer against its chunk, and of the chunks against the
        prompt.

        Chunks of an equivalent instance have the same keys as here; keys of other engines are unknown. The pages are
        still in the state's schema.

        Raises:
            KVCorrupt: a buffer is missing, has the wrong size, or differs from the exported one.
            InvalidRequest: ``kv_tokens`` of the state exceeds its prompt.
        """
        schema = state.kv_schema or self.schema
        prompt = () if state.finish_reason else kv_prompt(state)
        expected = self._chunks(schema, state.request_id, prompt, state.params)
        if not len(expected) == len(state.chunks) == len(buffers):
            raise KVCorrupt(
                f"got {len(buffers)} buffers and {len(state.chunks)} KV chunks, expected {len(expected)} for this "
                "prompt"
            )
        named = self.has_own_keys(state)
        blocks = [memoryview(buffer).cast("B") for buffer in buffers]
        for i, (chunk, own, block) in enumerate(zip(state.chunks, expected, blocks, strict=True)):
            is_named = not named or chunk.chunk_id == own.chunk_id
            if not is_named or (chunk.token_start, chunk.token_end) != (own.token_start, own.token_end):
                raise KVCorrupt(f"KV chunk {i} is not that of this prompt's tokens from {own.token_start} on")
            if block.nbytes != own.nbytes:
                raise KVCorrupt(
                    f"KV chunk {i} has {block.nbytes} bytes, expected {own.nbytes}; send it again"
                )
            if chunk.checksum is None or not verify(block, chunk.checksum):
                raise KVCorrupt(f"KV chunk {i} does not match its checksum; send it again")
        return blocks

    def imported(self, state: DecodeState, salt: bytes = b"") -> DecodeState:
        """Return the state of a request with imported KV; ``salt`` is the one that its KV is held with here.

        Chunks keep their ids if the KV arrived in this instance's schema. Converted ones get new ids.
        """
        chunks: Sequence[KVChunk] = state.chunks
        if self._is_converted(state):
            prompt = () if state.finish_reason else kv_prompt(state)
            chunks = self._chunks(self.schema, state.request_id, prompt, state.params, salt)
        chunks = [
            attrs.evolve(chunk, location=self._location(state.request_id, i), checksum=None)
            for i, chunk in enumerate(chunks)
        ]
        return attrs.evolve(state, instance_id=self.instance_id, kv_schema=self.schema, chunks=chunks)

    def _is_converted(self, state: DecodeState) -> bool:
        return state.kv_schema is not None and not state.kv_schema.compatible_with(self.schema).identical

    def _location(self, request_id: str, index: int) -> KVLocation:
        return KVLocation(tier="dram", uri=f"engine://{self.instance_id}/{request_id}/{index}")

    def _chunks(
        self,
        schema: KVCacheSchema,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        salt: bytes = b"",
    ) -> list[KVChunk]:
        size = schema.page_size
        pages = -(-len(prompt) // size)
        extras = () if params.adapter is None else [f"adapter {params.adapter}".encode()] * pages
        chain = KeyChain(self.kv_model, schema, salt=salt, extras=extras)
        keys = list(chain.extend(prompt))
        if len(prompt) % size:
            keys.append(chain.partial_key())
        return [
            KVChunk(
                chunk_id=key.hex(),
                request_id=request_id,
                layer_start=0,
                layer_end=schema.num_layers,
                token_start=i * size,
                token_end=min((i + 1) * size, len(prompt)),
                kv_schema=schema,
                nbytes=schema.bytes_per_page,
            )
            for i, key in enumerate(keys)
        ]


def kv_prompt(state: DecodeState) -> tuple[int, ...]:
    """Return the prompt tokens with KV in the state's chunks.

    Raises:
        InvalidRequest: ``kv_tokens`` is 0 or exceeds the prompt.
    """
    prompt, count = state.prompt_token_ids, state.kv_tokens
    if count is not None and not 0 < count <= len(prompt):
        raise InvalidRequest(
            f"the state of request {state.request_id!r} has KV for {count} tokens, but its prompt has {len(prompt)}"
        )
    return prompt[:count]


def logprob_as_json(logprob: TokenLogprob) -> dict[str, Any]:
    """Return a log probability as ``DecodeState.first_logprobs`` holds it."""
    data: dict[str, Any] = {
        "token_id": logprob.token_id,
        "text": logprob.text,
        "logprob": logprob.logprob,
        "alternatives": [list(other) for other in logprob.alternatives],
        "is_end": logprob.is_end,
    }
    if logprob.data is not None:
        data["bytes"] = [one.hex() for one in (logprob.data, *logprob.alternative_data)]
    return data


def first_logprob(state: DecodeState) -> TokenLogprob | None:
    """Return the first token's log probability as ``logprob_as_json`` wrote it.

    Raises:
        InvalidRequest: it is malformed.
    """
    data = state.first_logprobs
    if data is None:
        return None
    try:
        best = tuple((int(i), str(text), float(p)) for i, text, p in data["alternatives"])
        known = [bytes.fromhex(one) for one in data.get("bytes") or ()]
        return TokenLogprob(
            int(data["token_id"]), str(data["text"]), float(data["logprob"]), best, known[0] if known else None,
            tuple(known[1:]), is_end=bool(data.get("is_end")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"first_logprobs of the state are malformed: {error!r}") from error


def checked_hold(hold_s: object) -> float:
    """Return the seconds to hold a prefilled request; infinity without a limit.

    Raises:
        InvalidRequest: it is not a number above 0.
    """
    if isinstance(hold_s, bool) or not isinstance(hold_s, int | float) or not hold_s > 0:
        raise InvalidRequest(f"hold_s must be a number of seconds above 0, got {hold_s!r}")
    return float(hold_s)
