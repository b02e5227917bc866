"""Prompts use the remaining time of a step, as measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sage_infer_openvino.engine.pacing import Pacer

STEPS = st.lists(
    st.tuples(st.integers(0, 32), st.integers(0, 512), st.floats(1e-6, 10)).filter(lambda s: s[0] + s[1] > 0)
)


@given(STEPS, st.integers(1, 1024), st.floats(1.01, 10))
def test_never_none_and_never_more_than_the_limit(
    steps: list[tuple[int, int, float]], limit: int, slowdown: float
) -> None:
    pacer = Pacer(slowdown, smallest=16)
    for step in steps:
        pacer.ran(*step)
        assert min(16, limit) <= pacer.prompt_tokens(max(step[0], 1), step[1], limit) <= limit


@given(st.floats(0.001, 0.1), st.floats(0.0001, 0.01), st.floats(1.5, 5), st.integers(1, 32))
def test_a_step_takes_as_much_longer_as_was_said(
    decode_s: float, token_s: float, slowdown: float, decoding: int
) -> None:
    pacer = Pacer(slowdown, smallest=1)
    for _ in range(100):
        pacer.ran(decoding, 0, decode_s)
        prompt = pacer.prompt_tokens(decoding, 1, 10_000)
        pacer.ran(decoding, prompt, decode_s + prompt * token_s)
    spare = (slowdown - 1) * decode_s
    assert abs(pacer.prompt_tokens(decoding, 1, 10_000) * token_s - spare) <= 0.1 * spare + token_s


def test_one_hiccup_does_not_starve_the_prompts() -> None:
    pacer = Pacer(2.0, smallest=1)
    for _ in range(50):
        pacer.ran(4, 0, 0.02)
        pacer.ran(4, 20, 0.04)
    before = pacer.prompt_tokens(4, 1, 512)
    pacer.ran(4, 20, 5.0)
    assert pacer.prompt_tokens(4, 1, 512) >= before / 2


def test_few_tokens_say_little_of_the_cost_of_many() -> None:
    pacer = Pacer(2.0, smallest=1)
    for _ in range(50):
        pacer.ran(4, 0, 0.02)
        pacer.ran(4, 20, 0.04)
    before = pacer.prompt_tokens(4, 1, 512)
    for _ in range(10):
        pacer.ran(4, 1, 0.04)  # something else took the time
    assert pacer.prompt_tokens(4, 1, 512) > 0.8 * before


def test_steps_without_decodes_measure_the_cost_of_tokens() -> None:
    pacer = Pacer(2.0, smallest=1)
    pacer.ran(0, 100, 0.1)
    pacer.ran(3, 0, 0.05)
    assert pacer.prompt_tokens(3, 1, 512) == 50


@given(
    st.floats(0.001, 0.1), st.floats(0.0001, 0.01), st.floats(1.5, 5), st.integers(1, 8), st.integers(9, 64)
)
def test_sequences_that_come_to_decode_are_counted_in(
    fixed_s: float, row_s: float, slowdown: float, few: int, many: int
) -> None:
    """While prompts keep coming there is no step that only decodes, and the last one may have been a small one."""
    pacer = Pacer(slowdown, smallest=1)
    pacer.ran(few, 0, fixed_s + few * row_s)
    for _ in range(100):
        prompt = pacer.prompt_tokens(many, 1, 10_000)
        pacer.ran(many, prompt, fixed_s + (many + prompt) * row_s)
    spare = (slowdown - 1) * (fixed_s + many * row_s)
    assert abs(pacer.prompt_tokens(many, 1, 10_000) * row_s - spare) <= 0.1 * spare + row_s


@given(st.integers(1, 16), st.integers(0, 64))
def test_a_burst_may_take_longer_the_more_of_it_wait(decoding: int, prompts: int) -> None:
    pacer = Pacer(2.0, smallest=1)
    pacer.ran(0, 100, 0.1)
    pacer.ran(decoding, 0, 0.05)
    times = 1 + max(0, prompts - 1) / decoding
    assert abs(pacer.prompt_tokens(decoding, prompts, 10_000) - 50 * (2 * times - 1)) <= 1


@given(st.floats(0.001, 0.1), st.floats(0.0001, 0.05), st.integers(1, 6), st.integers(1, 64))
def test_excess_makes_a_step_at_most_a_quarter_longer(
    fixed_s: float, row_s: float, few: int, more: int
) -> None:
    pacer = Pacer(2.5, smallest=1)

    def step(sequences: int) -> float:
        return fixed_s + sequences * row_s

    for _ in range(30):
        pacer.ran(few + more, 0, step(few + more))  # while nobody else was there
    for _ in range(60):
        kept = pacer.excess(few, more)
        assert 0 <= kept <= more
        pacer.ran(few + kept, 0, step(few + kept))
    kept = pacer.excess(few, more)
    pacer.ran(few, 0, step(few))
    assert step(few + kept) <= 1.25 * step(few) + row_s
    fitting = int((1.25 * step(few) - fixed_s) / row_s + 1e-6) - few
    assert pacer.excess(few, more) >= min(more, fitting) - 1


def test_excess_before_anything_was_measured() -> None:
    pacer = Pacer(2.5, smallest=1)
    assert pacer.excess(4, 28) == 1
    assert pacer.excess(0, 28) <= 1


@given(st.floats(0.001, 0.1), st.floats(0.0001, 0.01), st.integers(1, 16), st.integers(0, 200))
def test_prompts_of_other_tenants_make_a_step_at_most_a_quarter_longer(
    decode_s: float, token_s: float, decoding: int, prompt: int
) -> None:
    pacer = Pacer(2.5, smallest=16)
    assert (pacer.prompt_alone(), pacer.prompt_beside(1, 0)) == (16, 1)
    for _ in range(60):
        pacer.ran(decoding, 0, decode_s)
        pacer.ran(decoding, 100, decode_s + 100 * token_s)
    beside = pacer.prompt_beside(decoding, prompt)
    most = 0.25 * (decode_s + prompt * token_s)
    assert beside == 1 or beside * token_s <= 1.1 * most
    assert (beside + 1) * token_s >= 0.9 * most
    assert pacer.prompt_alone() == 16 or pacer.prompt_alone() * token_s <= 0.11
