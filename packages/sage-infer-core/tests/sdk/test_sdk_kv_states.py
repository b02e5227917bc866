"""States of prefilled requests: chunks, checks before their KV is used, and what they say of themselves."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer import plugins
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import DecodeState, KVCacheSchema, SamplingParams, TokenLogprob
from sage_infer.sdk import KVStates, checked_hold, first_logprob, kv_prompt, logprob_as_json

SCHEMA = KVCacheSchema(dtype="fp32", page_size=4, num_layers=1, num_heads=1, head_dim=2)
SMALLER = attrs.evolve(SCHEMA, page_size=2)
PROMPT = tuple(range(6))


def keeper(**changes: Any) -> KVStates:
    fields = {
        "backend": "one", "model_id": "m", "kv_model": "w f32", "weights_id": "w", "instance_id": "here",
        "schema": SCHEMA,
    }  # fmt: skip
    return KVStates(**{**fields, **changes})


def state_of(states: KVStates, *, salt: str = "", adapter: str | None = None, **changes: Any) -> DecodeState:
    params = SamplingParams(adapter=adapter)
    state = DecodeState(
        request_id="r",
        model_id=states.model_id,
        instance_id=states.instance_id,
        prompt_token_ids=PROMPT,
        output_token_ids=(9,),
        params=params,
        seed=1,
        kv_schema=states.schema,
        chunks=states.chunks("r", PROMPT, params, salt.encode()),
        extensions=states.extensions(salted=bool(salt), more=1),
        weights_id=states.weights_id,
    )
    return attrs.evolve(state, **changes)


def buffers_of(state: DecodeState, fill: int = 1) -> list[memoryview]:
    return [memoryview(bytes([fill + i]) * chunk.nbytes) for i, chunk in enumerate(state.chunks)]


def test_chunks_are_named_by_what_they_depend_on() -> None:
    names = {
        tuple(chunk.chunk_id for chunk in state_of(keeper(), **more).chunks)
        for more in ({}, {"salt": "s"}, {"adapter": "a"})
    }
    assert len(names) == 3
    chunks = state_of(keeper()).chunks
    assert [(chunk.token_start, chunk.token_end) for chunk in chunks] == [(0, 4), (4, 6)]
    assert [chunk.location.uri for chunk in chunks if chunk.location] == [
        "engine://here/r/0",
        "engine://here/r/1",
    ]
    assert keeper().key_chain().extend(PROMPT) == [bytes.fromhex(chunks[0].chunk_id)]


def test_kv_travels_to_an_instance_of_the_same_form() -> None:
    here, there = keeper(), keeper(instance_id="there")
    state = state_of(here)
    buffers = buffers_of(state)
    state = here.exported(state, buffers)
    assert all(chunk.location is None and chunk.checksum for chunk in state.chunks)
    there.check(state)
    assert there.has_own_keys(state)
    assert there.verified(state, buffers) == buffers
    assert there.converter(state) is None
    arrived = there.imported(state)
    assert arrived.instance_id == "there"
    assert [chunk.chunk_id for chunk in arrived.chunks] == [chunk.chunk_id for chunk in state.chunks]
    assert there.own(arrived) == {"key_space": here.key_space, "salted": False, "more": 1}
    assert keeper(backend="two").own(arrived) == {}
    assert keeper().own(attrs.evolve(arrived, extensions={"one": "odd"})) == {}
    assert not there.has_own_keys(state_of(here, salt="s"))
    assert not keeper(kv_model="w bf16").has_own_keys(state)


def test_kv_of_another_form_is_converted_where_the_weights_are_equal() -> None:
    here, there = keeper(), keeper(backend="two", kv_model="x", instance_id="there", schema=SMALLER)
    state = state_of(here)
    buffers = buffers_of(state)
    state = here.exported(state, buffers)
    there.check(state)
    assert not there.has_own_keys(state)
    converter = there.converter(state)
    assert converter is not None
    pages = converter.converted(there.verified(state, buffers), len(kv_prompt(state)))
    assert [bytes(page) for page in pages] == [b"\1" * 32, b"\1" * 32, b"\2" * 32]
    arrived = there.imported(state, b"salt")
    assert arrived.kv_schema == SMALLER
    assert [(chunk.token_start, chunk.token_end) for chunk in arrived.chunks] == [(0, 2), (2, 4), (4, 6)]
    assert {chunk.chunk_id for chunk in arrived.chunks}.isdisjoint(
        chunk.chunk_id for chunk in there.chunks("r", PROMPT, state.params)
    )
    assert there.converter(arrived) is None


def test_kv_with_scales_of_the_whole_cache_stays_with_its_settings() -> None:
    schema = attrs.evolve(SCHEMA, dtype="fp8_e4m3", scale_dtype="fp32", scale_granularity="tensor")
    here = keeper(schema=schema)
    keeper(schema=schema, instance_id="there").check(state_of(here))
    with pytest.raises(CapabilityMismatch, match="computed in another precision"):
        keeper(schema=schema, kv_model="w bf16").check(state_of(here))


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ({"model_id": "x"}, {}, "to model 'm', but 'x' is loaded here"),
        ({"weights_id": "v"}, {}, "with the weights w, but this instance has v"),
        ({"weights_id": "", "kv_model": "v"}, {}, "other weights, or computed in another precision"),
        ({}, {"kv_schema": None, "chunks": ()}, "has no KV, which decode requires"),
        ({}, {"kv_schema": attrs.evolve(SCHEMA, num_layers=2)}, "num_layers differs"),
        ({"schema": SMALLER, "backend": "two"}, {"weights_id": ""}, r"another format \(page_size\), and the state"),
        ({"schema": SMALLER, "backend": "two", "weights_id": ""}, {}, r"\(page_size\), and this instance does not"),
        ({"schema": attrs.evolve(SCHEMA, rope="none")}, {}, "no conversion of rope"),
        ({}, {"kv_schema": attrs.evolve(SCHEMA, format_id="nobodys-9")}, "reads 'nobodys-9'.*; install the wheel"),
        ({"schema": attrs.evolve(SCHEMA, dtype="bf16")}, {}, "from fp32 to bf16"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused(ours: dict[str, Any], theirs: dict[str, Any], says: str) -> None:
    with pytest.raises(CapabilityMismatch, match=says):
        keeper(**ours).check(state_of(keeper(), **theirs))


def test_only_states_after_prefill_are_continued() -> None:
    with pytest.raises(InvalidRequest, match="1 completions and 2 output tokens"):
        keeper().check(state_of(keeper(), output_token_ids=(1, 2)))
    for count in (0, 7):
        with pytest.raises(InvalidRequest, match=f"KV for {count} tokens, but its prompt has 6"):
            kv_prompt(state_of(keeper(), kv_tokens=count))
    assert kv_prompt(state_of(keeper(), kv_tokens=5)) == PROMPT[:5]


def test_damaged_kv_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    states, other = keeper(), KVStates(**{**attrs.asdict(keeper(), recurse=False), "backend": "two"})
    state = state_of(states)
    buffers = buffers_of(state)
    state = states.exported(state, buffers)
    flipped = memoryview(b"\3" + bytes(buffers[1])[1:])
    unnamed = attrs.evolve(state, chunks=[attrs.evolve(chunk, checksum=None) for chunk in state.chunks])
    for receiver in (states, other):
        for wrong, data, says in (
            (state, buffers[:1], "got 1 buffers and 2 KV chunks, expected 2"),
            (state, [buffers[0], buffers[1][1:]], "chunk 1 has 63 bytes, expected 64"),
            (state, [buffers[0], flipped], "chunk 1 does not match its checksum"),
            (unnamed, buffers, "chunk 0 does not match its checksum"),
            (attrs.evolve(state, chunks=state.chunks[::-1]), buffers, "chunk 0 is not that of this prompt's tokens"),
        ):  # fmt: skip
            with pytest.raises(KVCorrupt, match=says):
                receiver.verified(wrong, data)
    renamed = attrs.evolve(state, chunks=[attrs.evolve(c, chunk_id="0" * 32) for c in state.chunks])
    assert other.verified(renamed, buffers) == buffers  # another engine's names mean nothing here
    with pytest.raises(KVCorrupt, match="chunk 0 is not that of this prompt's tokens from 0 on"):
        states.verified(renamed, buffers)
    assert states.verified(attrs.evolve(state, finish_reason="stop", chunks=()), []) == []


def test_a_codec_that_fails_to_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sage_infer.errors import BackendUnavailable

    def broken(format_id: str) -> None:
        raise BackendUnavailable(f"the codec of {format_id} is broken")

    monkeypatch.setattr(plugins, "kv_codec", broken)
    private = attrs.evolve(SCHEMA, format_id="odd-1")
    with pytest.raises(CapabilityMismatch, match="the codec of odd-1 is broken"):
        keeper().check(state_of(keeper(schema=private)))


@pytest.mark.parametrize(
    "logprob",
    [
        TokenLogprob(3, "a", -0.5, ((3, "a", -0.5), (4, "b", -1.5)), is_end=True),
        TokenLogprob(3, "a", -0.5, ((3, "a", -0.5),), b"\xe4", (b"\xe4",)),
    ],
)
def test_log_probabilities_of_the_first_token(logprob: TokenLogprob) -> None:
    assert first_logprob(state_of(keeper(), first_logprobs=logprob_as_json(logprob))) == logprob


def test_log_probabilities_that_are_missing_or_malformed() -> None:
    assert first_logprob(state_of(keeper())) is None
    for wrong in ({"token_id": 3}, {**logprob_as_json(TokenLogprob(3, "a", -0.5)), "bytes": ["zz"]}):
        with pytest.raises(InvalidRequest, match="malformed"):
            first_logprob(state_of(keeper(), first_logprobs=wrong))


@pytest.mark.parametrize("wrong", [0, -1.0, True, "5", float("nan")])
def test_times_to_hold_that_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="hold_s must be"):
        checked_hold(wrong)
    assert checked_hold(2) == 2.0
