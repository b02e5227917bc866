"""States of prefilled requests as plain data, and the checks before their KV is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from sage_infer.contracts import block_keys, partial_key
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import (
    DecodeState,
    FinishReason,
    KVCacheSchema,
    KVChunk,
    KVLocation,
    SamplingParams,
    TokenLogprob,
)
from sage_infer.sdk import checksum, verify

__all__ = ["States", "first_logprob", "logprob_as_json"]

_OWN = "vllm"


@attrs.frozen(kw_only=True)
class States:
    """Makes and checks the states of one instance.

    Attributes:
        model_id: the model's id.
        kv_model: name of the weights and of how they are computed, for keys of KV.
        key_space: ``contracts.key_space`` of ``kv_model`` and ``schema``.
        instance_id: of this instance.
        schema: of the KV cache.
    """

    model_id: str
    kv_model: str
    key_space: str
    instance_id: str
    schema: KVCacheSchema

    def of(
        self,
        request_id: str,
        prompt: Sequence[int],
        token: int,
        params: SamplingParams,
        *,
        seed: int,
        salt: str,
        cached_tokens: int,
        text: str,
        logprob: TokenLogprob | None,
        finish_reason: FinishReason | None,
    ) -> DecodeState:
        """The state after prefill. It has KV for the prompt, not yet for the first token."""
        tokens = tuple(prompt)
        return DecodeState(
            request_id=request_id,
            model_id=self.model_id,
            instance_id=self.instance_id,
            prompt_token_ids=tokens,
            output_token_ids=(token,),
            params=params,
            seed=seed,
            kv_schema=self.schema,
            chunks=() if finish_reason else self._chunks(request_id, tokens, params, salt),
            finish_reason=finish_reason,
            first_logprobs=None if logprob is None else logprob_as_json(logprob),
            extensions={
                _OWN: {
                    "key_space": self.key_space,
                    "salted": bool(salt),
                    "cached_tokens": cached_tokens,
                }
            },
            first_text=text,
        )

    def check(self, state: DecodeState) -> None:
        """Refuse a state that this instance cannot continue.

        Raises:
            CapabilityMismatch: of another model, other weights or another KV form.
            InvalidRequest: it is no state after prefill.
        """
        if state.model_id != self.model_id:
            raise CapabilityMismatch(
                f"the state is of model {state.model_id!r}, but {self.model_id!r} is loaded here"
            )
        if state.kv_schema is None:
            raise CapabilityMismatch(
                f"the state of request {state.request_id!r} has no KV, which decode requires; prefill it here"
            )
        fit = state.kv_schema.compatible_with(self.schema)
        if not fit.identical:
            what = fit.reason or "needs conversion of " + ", ".join(fit.conversions)
            raise CapabilityMismatch(f"the state's KV does not match this instance: {what}")
        theirs = _own(state).get("key_space")
        if theirs is not None and theirs != self.key_space:
            raise CapabilityMismatch(
                f"the state is of model {state.model_id!r} with other weights, or computed in another precision; "
                "both instances need the same model files and dtype"
            )
        if state.params.n != 1 or len(state.output_token_ids) != 1:
            raise InvalidRequest(
                f"the state of request {state.request_id!r} has {state.params.n} completions and "
                f"{len(state.output_token_ids)} output tokens; a state after prefill has one of each"
            )

    def cached_tokens(self, state: DecodeState) -> int:
        """Tokens that prefill found in a cache; 0 where the state does not say."""
        found = _own(state).get("cached_tokens", 0)
        return found if isinstance(found, int) and 0 <= found <= len(state.prompt_token_ids) else 0

    def is_private(self, state: DecodeState) -> bool:
        """Whether the prompt was computed with a salt, or by an instance whose keys mean nothing here."""
        own = _own(state)
        return bool(own.get("salted")) or own.get("key_space") != self.key_space

    def leaving(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """The exported state: chunks are identified by content, without a location."""
        chunks = [
            attrs.evolve(chunk, checksum=checksum(buffer), location=None)
            for chunk, buffer in zip(state.chunks, buffers, strict=True)
        ]
        return attrs.evolve(state, chunks=chunks)

    def verified(self, state: DecodeState, buffers: Sequence[memoryview]) -> list[memoryview]:
        """The buffers as bytes, each checked against its chunk, and the chunks against the prompt.

        Raises:
            KVCorrupt: a buffer is missing, of the wrong size, or not what was exported for this prompt.
        """
        ours = self._chunks(state.request_id, state.prompt_token_ids, state.params, "")
        if not len(ours) == len(state.chunks) == len(buffers):
            raise KVCorrupt(
                f"{len(buffers)} buffers arrived for {len(state.chunks)} KV chunks of a prompt that has {len(ours)}"
            )
        named = not self.is_private(state)
        blocks = [memoryview(buffer).cast("B") for buffer in buffers]
        for i, (chunk, own, block) in enumerate(zip(state.chunks, ours, blocks, strict=True)):
            is_named = not named or chunk.chunk_id == own.chunk_id
            if not is_named or (chunk.token_start, chunk.token_end) != (own.token_start, own.token_end):
                raise KVCorrupt(
                    f"KV chunk {i} is not the KV of this prompt's tokens from {own.token_start} on"
                )
            if block.nbytes != own.nbytes:
                raise KVCorrupt(
                    f"KV chunk {i} has {block.nbytes} bytes, expected {own.nbytes}; send it again"
                )
            if chunk.checksum is None or not verify(block, chunk.checksum):
                raise KVCorrupt(f"KV chunk {i} does not match its checksum; send it again")
        return blocks

    def arrived(self, state: DecodeState) -> DecodeState:
        """The state of a request with imported KV."""
        chunks = [
            attrs.evolve(chunk, location=self._location(state.request_id, i), checksum=None)
            for i, chunk in enumerate(state.chunks)
        ]
        return attrs.evolve(state, instance_id=self.instance_id, chunks=chunks)

    def _location(self, request_id: str, index: int) -> KVLocation:
        return KVLocation(tier="dram", uri=f"engine://{self.instance_id}/{request_id}/{index}")

    def _chunks(
        self, request_id: str, prompt: tuple[int, ...], params: SamplingParams, salt: str
    ) -> list[KVChunk]:
        schema, size = self.schema, self.schema.page_size
        pages = -(-len(prompt) // size)
        extras = () if params.adapter is None else [f"adapter {params.adapter}".encode()] * pages
        keys = list(block_keys(self.kv_model, schema, prompt, salt=salt.encode(), extras=extras))
        if len(prompt) % size:
            keys.append(partial_key(self.kv_model, schema, prompt, salt=salt.encode(), extras=extras))
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


def logprob_as_json(logprob: TokenLogprob) -> dict[str, Any]:
    return {
        "token_id": logprob.token_id,
        "text": logprob.text,
        "logprob": logprob.logprob,
        "alternatives": [list(other) for other in logprob.alternatives],
        "is_end": logprob.is_end,
    }


def first_logprob(state: DecodeState) -> TokenLogprob | None:
    """The first token's log probability as ``logprob_as_json`` wrote it.

    Raises:
        InvalidRequest: it is malformed.
    """
    data = state.first_logprobs
    if data is None:
        return None
    try:
        best = tuple((int(i), str(text), float(p)) for i, text, p in data["alternatives"])
        return TokenLogprob(
            int(data["token_id"]), str(data["text"]), float(data["logprob"]), best, is_end=bool(data.get("is_end")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"first_logprobs of the state are malformed: {error!r}") from error


def _own(state: DecodeState) -> dict[str, Any]:
    found = state.extensions.get(_OWN)
    return found if isinstance(found, dict) else {}
