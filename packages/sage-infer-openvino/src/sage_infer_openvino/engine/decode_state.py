"""Export and import of a held request as plain data."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import attrs
from sage_infer.contracts import KeyChain, key_space
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import DecodeState, KVCacheSchema, KVChunk, KVLocation, TokenLogprob
from sage_infer.sdk import checksum, verify

from sage_infer_openvino.engine.completion import append_token
from sage_infer_openvino.engine.engine import DecoderEngine
from sage_infer_openvino.engine.grammar.compiler import GrammarMatcher
from sage_infer_openvino.engine.requests import RequestFactory
from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["StateKeeper", "kv_prompt"]


@attrs.frozen(kw_only=True)
class StateKeeper:
    """Exports and imports states of one instance.

    ``fingerprint`` identifies the prepared weights, ``weights_id`` the weights in the source files; ``schema`` is that
    of the KV cache.
    """

    model_id: str
    fingerprint: str
    weights_id: str
    instance_id: str
    schema: KVCacheSchema
    eos_token_ids: frozenset[int]

    @property
    def key_space(self) -> str:
        """Identity of the key space of unsalted blocks, shared by compatible instances."""
        return key_space(self.fingerprint, self.schema)

    def key_chain(self, salt: bytes) -> KeyChain:
        """An empty chain of the keys in ``KVChunk.chunk_id`` and every ``KVStore``."""
        return KeyChain(self.fingerprint, self.schema, salt=salt)

    def of(self, request: EngineRequest) -> DecodeState:
        """The state of a request after prefill. It has KV for the prompt, not yet for the first token."""
        (sequence,) = request.sequences
        delta = request.first_delta
        return DecodeState(
            request_id=request.request_id,
            model_id=self.model_id,
            instance_id=self.instance_id,
            prompt_token_ids=request.prompt,
            output_token_ids=sequence.tokens[sequence.prompt_length :],
            params=request.params,
            seed=request.seed,
            kv_schema=self.schema,
            chunks=()
            if sequence.finish_reason
            else self._chunks(request.request_id, request.prompt, request.salt),
            finish_reason=sequence.finish_reason,
            first_logprobs=_to_json(delta.logprobs[0]) if delta is not None and delta.logprobs else None,
            extensions={"openvino": {"fingerprint": self.fingerprint, "salted": bool(request.salt)}},
            weights_id=self.weights_id,
            first_text=None if delta is None else delta.text,
        )

    def check(self, state: DecodeState) -> None:
        """Reject a state that this instance cannot continue.

        Raises:
            CapabilityMismatch: it has another model, other weights or another KV format. The engine that created it and
                its weight format do not matter.
        """
        self.check_model(state)
        if state.kv_schema is None:
            raise CapabilityMismatch(
                f"the state of request {state.request_id!r} has no KV, which decode requires; prefill it here"
            )
        fit = state.kv_schema.compatible_with(self.schema)
        if not fit.identical:
            reason = fit.reason or "conversion required: " + ", ".join(fit.conversions)
            raise CapabilityMismatch(f"the state's KV does not match this instance: {reason}")

    def check_model(self, state: DecodeState) -> None:
        """Reject a state of another model.

        Raises:
            CapabilityMismatch: the model's name differs, or the weights differ and both sides know them.
        """
        if state.model_id != self.model_id:
            raise CapabilityMismatch(
                f"the state belongs to model {state.model_id!r}, but {self.model_id!r} is loaded"
            )
        if state.weights_id and self.weights_id and state.weights_id != self.weights_id:
            raise CapabilityMismatch(
                f"the state belongs to model {state.model_id!r} with the weights {state.weights_id}, but this instance "
                f"has {self.weights_id}; use the same model files in both instances"
            )

    def find(self, engine: DecoderEngine, state: DecodeState) -> EngineRequest:
        """The held request of a state. Runs in the engine thread.

        Raises:
            InvalidRequest: its KV is not in this instance, or no longer.
        """
        if state.instance_id != self.instance_id:
            raise InvalidRequest(
                f"the KV of request {state.request_id!r} is in instance {state.instance_id}, but this is "
                f"{self.instance_id}; move it with export_kv and import_kv"
            )
        request = engine.held(state.request_id)
        (sequence,) = request.sequences
        if tuple(sequence.tokens) != state.prompt_token_ids + state.output_token_ids:
            raise InvalidRequest(
                f"the tokens of held request {state.request_id!r} differ from those of the state"
            )
        return request

    def restore(
        self, state: DecodeState, requests: RequestFactory, grammar: GrammarMatcher | None
    ) -> EngineRequest:
        """Reconstruct the request of a state as after prefill, without its blocks.

        Raises:
            InvalidRequest, UnsupportedFeature: the state is invalid for this instance.
            CapabilityMismatch: the sequence is too long for this instance.
        """
        request = requests.from_state(state, grammar)
        (sequence,) = request.sequences
        (token,) = state.output_token_ids
        delta = append_token(sequence, token, _first_logprob(state), self.eos_token_ids)
        if state.finish_reason is not None:
            delta.finish_reason = sequence.finish_reason = state.finish_reason
        elif sequence.finish_reason is not None:
            raise CapabilityMismatch(
                f"the sequence of request {state.request_id!r} has {len(sequence.tokens)} tokens, "
                "which exceeds the limit of this instance; raise max_sequence_length"
            )
        request.first_delta = delta
        request.hold = True
        if not self.has_own_keys(state):
            request.salt, request.is_private = secrets.token_bytes(16), True
        return request

    def exported(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """The exported state: chunks are identified by content, without a location."""
        chunks = [
            attrs.evolve(chunk, checksum=checksum(buffer), location=None)
            for chunk, buffer in zip(state.chunks, buffers, strict=True)
        ]
        return attrs.evolve(state, chunks=chunks)

    def verified(self, state: DecodeState, buffers: Sequence[memoryview]) -> list[memoryview]:
        """The buffers as bytes, after checks of each buffer against its chunk, and of the chunks against the prompt.

        Chunks of an equivalent engine have the same keys as in this instance; keys of other engines are unknown.

        Raises:
            KVCorrupt: a buffer is missing, has the wrong size, or differs from the exported one.
            InvalidRequest: ``kv_tokens`` of the state exceeds its prompt.
        """
        named = self.has_own_keys(state)
        ours = () if state.finish_reason else self._chunks(state.request_id, kv_prompt(state))
        if not len(ours) == len(state.chunks) == len(buffers):
            raise KVCorrupt(
                f"got {len(buffers)} buffers and {len(state.chunks)} KV chunks, expected {len(ours)} for this prompt"
            )
        blocks = [memoryview(buffer).cast("B") for buffer in buffers]
        for i, (chunk, own, block) in enumerate(zip(state.chunks, ours, blocks, strict=True)):
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

    def imported(self, state: DecodeState) -> DecodeState:
        """The state of a request with imported KV."""
        chunks = [
            attrs.evolve(chunk, location=self._location(state.request_id, i), checksum=None)
            for i, chunk in enumerate(state.chunks)
        ]
        return attrs.evolve(state, instance_id=self.instance_id, chunks=chunks)

    def has_own_keys(self, state: DecodeState) -> bool:
        """Whether the state's chunks have the same unsalted keys as in this instance."""
        made = state.extensions.get("openvino")
        return (
            isinstance(made, dict) and made.get("fingerprint") == self.fingerprint and not made.get("salted")
        )

    def _location(self, request_id: str, index: int) -> KVLocation:
        return KVLocation(tier="dram", uri=f"engine://{self.instance_id}/{request_id}/{index}")

    def _chunks(self, request_id: str, prompt: tuple[int, ...], salt: bytes = b"") -> list[KVChunk]:
        schema, size = self.schema, self.schema.page_size
        chain = self.key_chain(salt)
        keys = chain.extend(prompt)
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
                location=self._location(request_id, i),
            )
            for i, key in enumerate(keys)
        ]


def kv_prompt(state: DecodeState) -> tuple[int, ...]:
    """The prompt tokens with KV in the state's chunks.

    Raises:
        InvalidRequest: ``kv_tokens`` is 0 or exceeds the prompt.
    """
    prompt, count = state.prompt_token_ids, state.kv_tokens
    if count is not None and not 0 < count <= len(prompt):
        raise InvalidRequest(
            f"the state of request {state.request_id!r} has KV for {count} tokens, but its prompt has {len(prompt)}"
        )
    return prompt[:count]


def _to_json(logprob: TokenLogprob) -> dict[str, Any]:
    data: dict[str, Any] = {"token_id": logprob.token_id, "text": logprob.text, "logprob": logprob.logprob}
    data["alternatives"] = [list(other) for other in logprob.alternatives]
    if logprob.data is not None:
        data["bytes"] = [one.hex() for one in (logprob.data, *logprob.alternative_data)]
    return data


def _first_logprob(state: DecodeState) -> TokenLogprob | None:
    data = state.first_logprobs
    if data is None:
        return None
    try:
        best = tuple((int(i), str(text), float(p)) for i, text, p in data["alternatives"])
        known = [bytes.fromhex(one) for one in data.get("bytes") or ()]
        return TokenLogprob(
            int(data["token_id"]), str(data["text"]), float(data["logprob"]), best,
            known[0] if known else None, tuple(known[1:]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"first_logprobs of the state are malformed: {error!r}") from error
