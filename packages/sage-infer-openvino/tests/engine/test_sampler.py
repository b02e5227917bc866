"""Sampling compared with its plain definitions."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openvino_toy import EOS, VOCABULARY, toy_tokenizer
from sage_infer.schemas import SamplingParams
from sage_infer_openvino.engine.candidates import candidates, draw, most_likely, to_weights
from sage_infer_openvino.engine.sampler import Sampler
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

TOKENIZER = toy_tokenizer()
SAMPLER = Sampler(TOKENIZER)
Row = npt.NDArray[np.float32]


def sequence(
    prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = (), *, index: int = 0, **params: Any
) -> SequenceState:
    request = EngineRequest(
        request_id="r",
        params=SamplingParams(**{"temperature": 0.0, **params}),
        prompt=prompt,
        loop=asyncio.new_event_loop(),
        seed=params.get("seed") or 0,
    )
    request.loop.close()
    return SequenceState(
        request=request,
        index=index,
        tokens=[*prompt, *output],
        prompt_length=len(prompt),
        max_length=100,
        detokenizer=TOKENIZER.detokenizer(),
        stop_strings=None,
    )


def row(seed: int = 0, size: int = VOCABULARY) -> Row:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def pick(logits: Row, *sequences: SequenceState) -> list[int]:
    rows = np.stack([logits] * len(sequences))
    chosen = SAMPLER.choose(sequences, rows)
    assert None not in chosen
    return [pair[0] for pair in chosen if pair is not None]


def kept(logits: Row, **params: Any) -> dict[int, float]:
    """Ids and probabilities that ``candidates`` keeps."""
    sampling = SamplingParams(**params)
    ids, weights = candidates(to_weights(logits[None].copy(), [sampling.temperature])[0], sampling)
    chosen = range(len(logits)) if ids is None else ids.tolist()
    return dict(zip(chosen, (weights / weights.sum(dtype=np.float64)).tolist(), strict=True))


def defined(
    logits: Row, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """The definitions, one after the other, over the whole sorted vocabulary."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        order = order[:top_k]
    shares = p[order] / p[order].sum()
    if top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(shares), top_p)) + 1]
    order = order[p[order] >= min_p * p[order[0]]]
    return dict(zip(order.tolist(), (p[order] / p[order].sum()).tolist(), strict=True))


@given(st.integers(0, 2**32 - 1))
def test_greedy_is_the_largest(seed: int) -> None:
    logits = row(seed)
    assert pick(logits, sequence()) == [int(logits.argmax())]


@pytest.mark.parametrize("size", [7, VOCABULARY, 3000])
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.5, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 10_000]),
    top_p=st.sampled_from([1e-6, 0.25, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_filters_match_their_definitions(
    size: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = row(seed, size)
    cuts: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    ours, theirs = kept(logits, **cuts), defined(logits, **cuts)
    # A token right on the border may fall on either side in float32.
    for token in set(ours) ^ set(theirs):
        assert {**ours, **theirs}[token] <= 1.001 * min([*ours.values(), *theirs.values()])
    if set(ours) == set(theirs):
        assert all(abs(ours[token] - theirs[token]) < 1e-4 for token in ours)


@given(st.integers(0, 1000), st.sampled_from([5, 128, 1000, 5000]), st.integers(1, 60))
def test_the_most_likely_are_the_largest(seed: int, size: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 50, size).astype(np.float32)
    assert most_likely(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100), st.sampled_from([1, 127, 128, 129, 1000]))
def test_a_draw_falls_where_its_number_says(uniform: float, seed: int, size: int) -> None:
    weights = np.random.default_rng(seed).random(size, np.float32)
    weights[np.random.default_rng(seed).random(size) < 0.5] = 0
    weights[-1 if seed % 2 else 0] = 1
    at = draw(weights, uniform)
    ends = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    assert weights[at] > 0
    assert ends[at] - weights[at] / weights.sum() - 1e-5 <= uniform <= ends[at] + 1e-5


def test_equal_logits_are_no_trouble() -> None:
    flat = np.zeros(VOCABULARY, np.float32)
    assert list(kept(flat, top_k=1)) == [int(flat.argmax())]
    assert len(kept(flat, top_k=5)) == 5
    assert len(kept(flat, top_p=0.5)) == pytest.approx(VOCABULARY / 2, abs=1)
    assert len(kept(flat, min_p=1.0)) == VOCABULARY


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-3])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    logits = row()
    assert pick(logits, sequence(temperature=temperature)) == [int(logits.argmax())]


def test_repetition_penalty() -> None:
    logits = row()
    seen = [1, 2, 3, 9]
    expected = logits.copy()
    expected[seen] = np.where(
        logits[seen] > 0, logits[seen] / np.float32(1.7), logits[seen] * np.float32(1.7)
    )
    changed = logits.copy()
    SAMPLER._adjust(changed, sequence(output=(9,), repetition_penalty=1.7))
    assert np.array_equal(changed, expected)


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = row()
    expected = logits.copy()
    expected[7] -= np.float32(0.5) + 2 * np.float32(0.25)
    expected[9] -= np.float32(0.5) + np.float32(0.25)
    changed = logits.copy()
    SAMPLER._adjust(changed, sequence(output=(7, 9, 7), presence_penalty=0.5, frequency_penalty=0.25))
    assert np.allclose(changed, expected, atol=1e-6)


def test_min_tokens_forbids_ends_and_ignores_ids_that_do_not_exist() -> None:
    logits = row()
    logits[[EOS, 17]] = 100
    stops = {"stop_token_ids": (17, 10**6), "min_tokens": 2}
    assert pick(logits, sequence(output=(5,), **stops))[0] not in (EOS, 17)
    assert pick(logits, sequence(output=(5, 5), **stops)) == [17]
    # With ignore_eos the end-of-sequence token is a token like others.
    logits[17] = 0
    assert pick(logits, sequence(ignore_eos=True, **stops)) == [EOS]


def test_log_probabilities_are_of_the_model_itself() -> None:
    logits = row()
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    (chosen,) = SAMPLER.choose(
        [sequence(output=(4,), repetition_penalty=5.0, logprobs=3)], logits[None].copy()
    )
    token, logprob = chosen
    assert logprob is not None
    assert logprob.token_id == token
    assert logprob.logprob == pytest.approx(expected[token], abs=1e-4)
    best = np.argsort(-logits)[:3].tolist()
    assert [entry[0] for entry in logprob.alternatives] == best
    assert [entry[2] for entry in logprob.alternatives] == pytest.approx(expected[best].tolist(), abs=1e-4)
    assert logprob.data == SAMPLER._tokenizer.token_bytes[token]
    assert logprob.alternative_data == tuple(SAMPLER._tokenizer.token_bytes[i] for i in best)


def test_more_alternatives_than_there_are_tokens() -> None:
    (chosen,) = SAMPLER.choose([sequence(logprobs=100)], row(size=7)[None])
    assert chosen[1] is not None
    assert len(chosen[1].alternatives) == 7


def test_draws_follow_the_distribution() -> None:
    """10,000 draws with seeds 0, 1, …: every frequency within 5 standard deviations, the same on every machine."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.1, 0.025], np.float32))
    count = 10_000
    drawn = np.bincount(pick(logits, *(sequence(temperature=1.0, seed=s) for s in range(count))), minlength=5)
    p = np.exp(logits.astype(np.float64))
    assert np.all(np.abs(drawn - count * p) <= 5 * np.sqrt(count * p * (1 - p)))


def test_positions_and_completions_draw_independently() -> None:
    flat = np.zeros(VOCABULARY, np.float32)
    by_position = {pick(flat, sequence(output=(5,) * n, temperature=1.0, seed=1))[0] for n in range(20)}
    by_index = {pick(flat, sequence(index=n, temperature=1.0, seed=1))[0] for n in range(20)}
    assert min(len(by_position), len(by_index)) > 12


def test_a_draw_does_not_depend_on_the_batch() -> None:
    logits = row()
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 3},
        {},
        {"temperature": 0.7, "top_p": 0.8, "seed": 4},
        {"temperature": 2.0, "top_k": 30, "min_p": 0.05, "seed": 5, "frequency_penalty": 1.0},
    ]
    alone = [pick(logits, sequence(output=(8, 8), **kind))[0] for kind in kinds]
    for order in itertools.permutations(range(len(kinds))):
        together = pick(logits, *(sequence(output=(8, 8), **kinds[i]) for i in order))
        assert together == [alone[i] for i in order]


@pytest.mark.parametrize("penalty", [5e-324, 1e-308, 1e-45, 1e-38, 1e-30, 10.0])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-5, 1.0, 2.0])
def test_extreme_parameters_choose_a_token(penalty: float, temperature: float) -> None:
    params = {"repetition_penalty": penalty, "temperature": temperature, "top_p": 0.9, "seed": 1}
    (token,) = pick(row(), sequence(tuple(range(20)), **params))
    assert 0 <= token < VOCABULARY
    if penalty < 1:
        assert token < 20, "a tiny factor makes seen tokens the most likely ones"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_finite_logit_choose_nothing(temperature: float) -> None:
    rows = np.stack([row(), row(1), row(2)])
    rows[1] = -np.inf
    rows[2, 5] = np.nan
    chosen = SAMPLER.choose([sequence(temperature=temperature, seed=3) for _ in range(3)], rows)
    assert chosen[0] is not None
    assert chosen[1:] == [None, None]
