"""The names of KV blocks: fixed for good, and apart wherever the KV may differ."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.contracts import KeyChain, block_keys, key_space, next_key, partial_key, root_key
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema, KVGroup

GEOMETRY = {"num_layers": 30, "num_heads": 3, "head_dim": 64}
PLAIN = KVCacheSchema.from_preset("bf16", **GEOMETRY)

# Written by the first edition of the contract. A store on disk has such keys: these values never change.
GOLDEN = [
    ("smollm2-135m", PLAIN, ["e7238b8f0eb94892f1ea92a59eae4064", "5166a79f00718af836c31416888bf3bb"]),
    (
        "smollm2-135m",
        KVCacheSchema.from_preset("fp16", page_size=32, format_id="vllm-0.32.0-cpu_attn", **GEOMETRY),
        ["742abf486649b47203465d20701fa18f"],
    ),
    (
        "smollm2-135m",
        KVCacheSchema.from_preset("fp8", **GEOMETRY),
        ["fd0090db9ce2229f38cf7e16329ca1a0", "a128c7f93198dfc514a4a59e613735c3"],
    ),
    (
        "smollm2-135m",
        KVCacheSchema.from_preset("int4", layout="contiguous", **GEOMETRY),
        ["4106627b72ba8485d97b5deb9db18173", "b5f19533b6004cc86496421e1f9f09c1"],
    ),
    (
        "ä\nm",
        KVCacheSchema(
            dtype="fp32", page_size=16, axis_order=("layer", "head", "kv", "token", "dim"), **GEOMETRY
        ),
        ["84e9041b60dd93d61aadbcbc701cb5de", "fc5806799412f23326438abb9c613f21"],
    ),
]


@pytest.mark.parametrize(("model_id", "schema", "keys"), GOLDEN)
def test_keys_of_the_first_edition_stay(model_id: str, schema: KVCacheSchema, keys: list[str]) -> None:
    assert [key.hex() for key in block_keys(model_id, schema, range(40))] == keys


tokens = st.lists(st.integers(0, 2**31), max_size=80)


@given(tokens, tokens)
def test_equal_prefixes_and_only_they_share_keys(a: list[int], b: list[int]) -> None:
    keys_a, keys_b = list(block_keys("m", PLAIN, a)), list(block_keys("m", PLAIN, b))
    assert len(keys_a) == len(a) // 16
    for i, (x, y) in enumerate(zip(keys_a, keys_b, strict=False)):
        end = (i + 1) * 16
        assert (x == y) == (a[:end] == b[:end])


group = KVGroup(layers=range(30), kind="sliding", window=64)
FORMS = [
    {"page_size": 8}, {"format_id": "x"}, {"value_dim": 0}, {"value_dim": 32}, {"value_dtype": "fp16"},
    {"key_axis_order": ("layer", "kv", "head", "dim", "token")}, {"rope": "interleaved"}, {"rope_dim": 32},
    {"shards": 3}, {"groups": (group,)}, {"groups": (attrs.evolve(group, window=65),)},
]  # fmt: skip


def test_every_field_of_the_form_makes_other_keys() -> None:
    schemas = [PLAIN, *(attrs.evolve(PLAIN, **form) for form in FORMS)]
    prompt = range(32)
    assert len({next(block_keys("m", schema, prompt)) for schema in schemas}) == len(schemas)
    assert len({key_space("m", schema) for schema in schemas}) == len(schemas)
    # A short prompt as well: its only key is that of a page that is not full.
    assert len({partial_key("m", schema, range(5)) for schema in schemas}) == len(schemas)


@given(st.binary(max_size=200), st.binary(max_size=200), tokens.filter(lambda t: len(t) % 16))
def test_only_requests_of_one_salt_share_keys(a: bytes, b: bytes, prompt: list[int]) -> None:
    def names(salt: bytes) -> list[bytes]:
        return [
            *block_keys("m", PLAIN, prompt, salt=salt),
            partial_key("m", PLAIN, prompt, salt=salt),
        ]

    assert (names(a) == names(b)) == (a == b)
    if a != b:
        assert not set(names(a)) & set(names(b))


def test_an_extra_sets_its_page_and_all_later_ones_apart() -> None:
    prompt = list(range(50))
    plain = list(block_keys("m", PLAIN, prompt))
    second = list(block_keys("m", PLAIN, prompt, extras=[b"", b"image"]))
    assert second[0] == plain[0]
    assert not set(second[1:]) & set(plain)
    assert partial_key("m", PLAIN, prompt, extras=[b"", b"image"]) != partial_key("m", PLAIN, prompt)
    last = partial_key("m", PLAIN, prompt, extras=[b"", b"", b"", b"image"])
    assert last != partial_key("m", PLAIN, prompt)


@given(tokens.filter(lambda t: len(t) % 16), tokens.filter(lambda t: len(t) % 16))
def test_partial_pages_are_told_apart_by_their_whole_prefix(a: list[int], b: list[int]) -> None:
    assert (partial_key("m", PLAIN, a) == partial_key("m", PLAIN, b)) == (a == b)


def test_full_pages_have_no_partial_key() -> None:
    with pytest.raises(InvalidRequest, match="32 tokens fill whole pages of 16"):
        partial_key("m", PLAIN, range(32))


@given(st.lists(tokens, max_size=6), st.lists(st.binary(max_size=4), max_size=6), st.binary(max_size=4))
def test_a_chain_has_the_keys_of_its_tokens(parts: list[list[int]], extras: list[bytes], salt: bytes) -> None:
    """However they come: the keys are those of all tokens together, and each call returns its own."""
    chain, so_far = KeyChain("m", PLAIN, salt=salt, extras=extras), []
    for part in parts:
        before = len(chain.keys)
        fresh = chain.extend(part)
        so_far += part
        assert chain.keys == list(block_keys("m", PLAIN, so_far, salt=salt, extras=extras))
        assert fresh == chain.keys[before:]
        assert chain.length == len(so_far)
        if len(so_far) % 16:
            assert chain.partial_key() == partial_key("m", PLAIN, so_far, salt=salt, extras=extras)
        else:
            with pytest.raises(InvalidRequest, match="fill whole pages"):
                chain.partial_key()


def test_a_chain_hashes_a_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = KeyChain("m", PLAIN)
    hashed = []
    digest = hashlib.blake2b
    monkeypatch.setattr(
        hashlib, "blake2b", lambda data, **options: hashed.append(data) or digest(data, **options)
    )
    for token in range(16 * 100):
        chain.extend([token])
    assert len(hashed) == len(chain.keys) == 100


@given(
    st.lists(st.integers(0, 2**31), max_size=80), st.binary(max_size=4), st.sampled_from([b"", b"adapter"])
)
def test_keys_continue_from_a_known_one(tokens: list[int], salt: bytes, extra: bytes) -> None:
    size, key = PLAIN.page_size, root_key("m", PLAIN, salt)
    extras = [extra] * len(tokens)
    for index, whole in enumerate(block_keys("m", PLAIN, tokens, salt=salt, extras=extras)):
        key = next_key(key, tokens[index * size : (index + 1) * size], extra)
        assert key == whole
