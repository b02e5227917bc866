"""Calls share the batch: one with many completions or prompts does not make others wait. Counted in steps."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openvino_toy import toy_tokenizer
from sage_infer.contracts import KeyChain
from sage_infer.schemas import KVCacheSchema, SamplingParams
from sage_infer_openvino.engine.block_pool import BlockPool
from sage_infer_openvino.engine.scheduler import Scheduler
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

BLOCK = 4
SCHEMA = KVCacheSchema(dtype="fp32", page_size=BLOCK, num_layers=1, num_heads=1, head_dim=1)
TOKENIZER = toy_tokenizer()
LOOP = asyncio.new_event_loop()
LOOP.close()
ARRIVALS = itertools.count()


def key_chain(salt: bytes = b"") -> KeyChain:
    return KeyChain("toy", SCHEMA, salt=salt)


def call(
    n: int = 1, *, prompt: int = 4, output: int = 8, tenant: str = "", priority: int = 0
) -> list[SequenceState]:
    """The sequences of one prompt with ``n`` completions."""
    number = next(ARRIVALS)
    request = EngineRequest(
        request_id=f"r{number}", params=SamplingParams(), prompt=(number % 200, *range(1, prompt)), loop=LOOP,
        arrived_at=number, tenant=tenant, priority=priority,
    )  # fmt: skip
    request.sequences = [
        SequenceState(
            request=request, index=index, tokens=list(request.prompt), prompt_length=prompt, max_length=prompt + output,
            detokenizer=TOKENIZER.detokenizer(), stop_strings=None,
        )
        for index in range(n)
    ]  # fmt: skip
    return request.sequences


class Limits:
    """Of steps with several tenants."""

    def __init__(self, excess: int = 0, beside: int = 2, alone: int = 8) -> None:
        self._excess, self._beside, self._alone = excess, beside, alone

    def excess(self, sequences: int, more: int) -> int:
        return min(self._excess, more)

    def prompt_beside(self, sequences: int, prompt_tokens: int) -> int:
        return self._beside

    def prompt_alone(self) -> int:
        return self._alone


class Engine:
    """A scheduler whose sequences grow by a token in every step, until they have all of theirs."""

    def __init__(self, *, blocks: int = 400, batch: int = 4, step: int = 16) -> None:
        self.scheduler = Scheduler(
            BlockPool(blocks), block_size=BLOCK, max_batch_size=batch, step_tokens=step, key_chain=key_chain
        )
        self.limits: Limits | None = None
        self.computed: Counter[int] = Counter()  # tokens of each sequence, also those computed again
        self.ended: list[SequenceState] = []

    def add(self, sequences: list[SequenceState]) -> list[SequenceState]:
        for sequence in sequences:
            self.scheduler.add(sequence)
        return sequences

    def step(self, count: int = 1) -> list[SequenceState]:
        """Advance; returns the sequences of the last step."""
        found = []
        for _ in range(count):
            found = []
            for sequence, tokens in self.scheduler.next_step(None, self.limits):
                found.append(sequence)
                self.computed[id(sequence)] += tokens
                self.scheduler.computed(sequence, tokens)
                if sequence.computed == len(sequence.tokens):
                    sequence.tokens.append(0)
                    if len(sequence.tokens) >= sequence.max_length:
                        self.scheduler.remove(sequence)
                        self.ended.append(sequence)
        return found

    def running(self, sequences: list[SequenceState]) -> int:
        return sum(sequence in self.scheduler.running for sequence in sequences)


def test_one_request_runs_in_the_next_step_beside_128_completions() -> None:
    engine = Engine(batch=8)
    many = engine.add(call(128, output=500))
    engine.step(20)
    assert engine.running(many) == 8
    (one,) = engine.add(call())
    assert one in engine.step()
    while one not in engine.ended:
        assert one in engine.step()
    assert engine.scheduler.preemptions == 0


def test_who_gave_way_keeps_what_was_computed() -> None:
    engine = Engine(batch=4)
    many = engine.add(call(4, output=20))
    engine.step(8)
    engine.add(call(output=6))
    while engine.scheduler.running or engine.scheduler.waiting:
        engine.step()
    assert len(engine.ended) == 5
    for sequence in many:  # all but the last token are computed once, a shared block perhaps not at all
        assert engine.computed[id(sequence)] <= len(sequence.tokens) - 1
    assert engine.scheduler.preemptions == 0


def test_two_calls_get_half_each() -> None:
    engine = Engine(batch=8)
    first = engine.add(call(20, output=100))
    engine.step(5)
    second = engine.add(call(20, output=100))
    engine.step(12)
    assert (engine.running(first), engine.running(second)) == (4, 4)


def test_prompts_of_one_call_are_one_share() -> None:
    engine = Engine(batch=4, step=4)
    prompts = [s for _ in range(30) for s in call(prompt=4, output=50)]
    for sequence in prompts:
        sequence.request.call = prompts[0].request.call
    engine.add(prompts)
    engine.step(2)
    (one,) = engine.add(call())
    engine.step(8)
    assert one in engine.ended or engine.running([one])


def test_blocks_are_shared_as_well() -> None:
    """The pool is full of one call's completions; another one's prompt gets the blocks of the latest of them."""
    engine = Engine(blocks=24, batch=16)
    many = engine.add(call(16, output=60))
    while engine.scheduler.pool.free > 2:
        engine.step()
    (one,) = engine.add(call(prompt=12, output=12))
    engine.step(2)
    assert engine.running([one])
    while one not in engine.ended:
        assert one in engine.step(), "it lost its blocks to the larger call"
    while engine.scheduler.running or engine.scheduler.waiting:
        assert engine.step()
    assert len(engine.ended) == len(many) + 1
    assert engine.scheduler.pool.free == 24


def test_an_urgent_call_does_not_give_way() -> None:
    engine = Engine(batch=4)
    urgent = engine.add(call(8, output=50, priority=-1))
    engine.step(6)
    engine.add(call())
    engine.step(6)
    assert engine.running(urgent) == 4


def test_priority_orders_the_requests_of_a_tenant_only() -> None:
    engine = Engine(batch=4)
    urgent = engine.add(call(128, output=500, priority=-(2**31), tenant="a"))
    engine.step(6)
    assert engine.running(urgent) == 4
    (one,) = engine.add(call(output=20, tenant="b"))
    while one not in engine.ended:
        assert one in engine.step()
    first, second = engine.add([*call(tenant="b", output=9), *call(tenant="b", output=9, priority=-1)])
    engine.step()
    assert (engine.running([first]), engine.running([second])) in ((0, 1), (1, 1))


def test_single_requests_are_never_interrupted() -> None:
    engine = Engine(batch=4)
    singles = [engine.add(call(output=30))[0] for _ in range(4)]
    engine.step(6)
    engine.add(call(output=5))
    assert set(map(id, engine.step())) == set(map(id, singles))


def test_the_tenant_with_fewer_running_sequences_is_next() -> None:
    engine = Engine(batch=2)
    for _ in range(6):
        engine.add(call(tenant="a"))
    engine.step(2)
    (other,) = engine.add(call(tenant="b"))
    assert other in engine.step()
    assert len(engine.scheduler.running) == 2


def test_long_streams_of_a_tenant_give_way_to_another_tenant() -> None:
    engine = Engine(batch=8)
    many = [engine.add(call(output=500, tenant="a"))[0] for _ in range(30)]
    engine.step(20)
    assert engine.running(many) == 8
    (one,) = engine.add(call(tenant="b"))
    while one not in engine.ended:
        assert one in engine.step()
    assert engine.scheduler.preemptions == 0
    others = [engine.add(call(output=500, tenant="b"))[0] for _ in range(30)]
    engine.step(20)
    assert (engine.running(many), engine.running(others)) == (4, 4)
    third = [engine.add(call(output=500, tenant="c"))[0] for _ in range(30)]
    engine.step(20)
    assert engine.running(third) >= 2


def test_a_small_tenant_keeps_its_blocks_beside_a_large_one() -> None:
    engine = Engine(blocks=24, batch=16)
    many = [engine.add(call(output=60, tenant="a"))[0] for _ in range(16)]
    while engine.scheduler.pool.free > 2:
        engine.step()
    (one,) = engine.add(call(prompt=12, output=12, tenant="b"))
    engine.step(2)
    while one not in engine.ended:
        assert one in engine.step(), "it lost its blocks to the larger tenant"
    while engine.scheduler.running or engine.scheduler.waiting:
        assert engine.step()
    assert len(engine.ended) == len(many) + 1
    assert engine.scheduler.pool.free == 24


def test_many_completions_do_not_make_the_steps_of_another_tenant_long() -> None:
    engine = Engine(batch=8)
    engine.limits = Limits(2)
    many = [s for _ in range(3) for s in engine.add(call(128, output=60, tenant="a"))]
    assert len(engine.step(20)) == 8, "nobody else is there"
    (one,) = engine.add(call(output=20, tenant="b"))
    engine.step()
    running = set(map(id, many))
    while one not in engine.ended:
        step = engine.step()
        assert one in step
        assert sum(id(sequence) in running for sequence in step) == 3, "one of the tenant, and two more"
    assert len(engine.step()) == 8
    assert engine.scheduler.preemptions == 0


def test_streams_abandoned_one_after_another_do_not_fill_the_steps_of_another_tenant() -> None:
    engine = Engine(batch=8)
    engine.limits = Limits(1)
    (one,) = engine.add(call(output=30, tenant="b"))
    engine.step(2)
    many: list[SequenceState] = []
    while one not in engine.ended:
        for sequence in many:
            engine.scheduler.remove(sequence)
        many = [s for _ in range(4) for s in engine.add(call(8, tenant="a"))]
        step = engine.step()
        assert one in step
        assert len(step) <= 3


def test_prompts_are_not_held_up_by_the_streams_of_a_tenant_that_costs_more() -> None:
    """A new token costs as much as several tokens of a prompt: three streams are more work than some short chats."""
    engine = Engine(batch=8, step=64)
    engine.limits = Limits(beside=1, alone=64)
    for _ in range(3):
        engine.add(call(output=1000, tenant="a"))
    engine.step(100)
    for _ in range(20):
        (chat,) = engine.add(call(prompt=40, output=4, tenant="b"))
        engine.step(4)
        assert chat in engine.ended
        engine.step(6)


def test_a_tenant_that_arrives_or_returns_does_not_come_before_those_that_worked_meanwhile() -> None:
    engine = Engine(batch=8, step=64)
    engine.limits = Limits(beside=1, alone=64)
    for _ in range(3):
        for _ in range(50):
            engine.add(call(prompt=60, output=4, tenant="a"))
            engine.step(5)
        for _ in range(3):
            engine.add(call(prompt=60, output=2, tenant="b"))
        for _ in range(10):
            (chat,) = engine.add(call(prompt=40, output=4, tenant="a"))
            for _ in range(8):
                engine.add(call(prompt=60, output=2, tenant="b"))
                engine.step()
            assert chat in engine.ended
        engine.step(200)


@pytest.mark.parametrize("prompt", [8, 20, 36])
@pytest.mark.parametrize("every", [3, 4, 6])
def test_small_requests_of_a_new_tenant_do_not_hold_up_the_prompts_of_chats(prompt: int, every: int) -> None:
    engine = Engine(batch=8, step=64)
    engine.limits = Limits(beside=2, alone=40)
    for step in range(300):
        if step % 18 == 0:
            (chat,) = engine.add(call(prompt=36, output=8, tenant="a"))
        if step >= 100 and step % every == 0:
            engine.add(call(prompt=prompt, output=4, tenant="b"))
        engine.step()
        if step % 18 == 2:
            assert len(chat.tokens) > chat.prompt_length, f"no token in three steps, in step {step}"


def test_prompts_of_others_do_not_slow_the_streams_of_a_regular_tenant_that_needs_less() -> None:
    engine = Engine(batch=8, step=64)
    engine.limits = Limits(beside=2, alone=40)
    largest = 0
    for step in range(300):
        if step % 18 == 0:
            engine.add(call(prompt=36, output=8, tenant="a"))
        if step % 3 == 0:
            engine.add(call(prompt=20, output=4, tenant="b"))
        before = engine.computed.copy()
        found = engine.step()
        prompts = [engine.computed[id(s)] - before[id(s)] for s in found if s.request.tenant == "b"]
        if step > 100 and 2 <= step % 18 <= 5:  # the chat decodes
            largest = max(largest, *prompts, 0)
    assert largest <= 2


def test_a_limit_of_none_ends_nothing_and_holds_nobody_for_ever() -> None:
    engine = Engine(batch=8)
    engine.limits = Limits(0)
    calls = [call(n, output=12, tenant=tenant) for n, tenant in ((20, "a"), (20, "b"), (1, "c"), (3, "c"))]
    count = sum(len(engine.add(sequences)) for sequences in calls)
    for _ in range(2000):
        engine.step()
    assert len(engine.ended) == count


def test_requests_of_one_sequence_are_no_excess() -> None:
    engine = Engine(batch=8)
    engine.limits = Limits(0)
    singles = [engine.add(call(output=30, tenant="a"))[0] for _ in range(6)]
    engine.step(6)
    (one,) = engine.add(call(tenant="b"))
    engine.step(3)
    assert set(map(id, engine.step())) == set(map(id, [*singles, one]))


@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(1, 12),
            st.integers(1, 14),
            st.integers(2, 12),
            st.sampled_from("aabc"),
        ),
        min_size=1,
        max_size=8,
    ),
    blocks=st.integers(12, 60),
)
def test_everybody_begins_soon_and_everybody_ends(
    calls: list[tuple[int, int, int, int, str]], blocks: int
) -> None:
    """``calls`` are (step of arrival, completions, prompt, output, tenant)."""
    engine = Engine(blocks=blocks, batch=8)
    arrivals = sorted(calls)
    began: dict[int, int] = {}
    present: list[tuple[int, list[SequenceState]]] = []
    for now in range(3000):
        while arrivals and arrivals[0][0] <= now:
            _, n, prompt, output, tenant = arrivals.pop(0)
            present.append((now, engine.add(call(n, prompt=prompt, output=output, tenant=tenant))))
        if not arrivals and not engine.scheduler.running and not engine.scheduler.waiting:
            break
        step = set(map(id, engine.step()))
        assert step or (not engine.scheduler.running and not engine.scheduler.waiting)
        for number, (_, sequences) in enumerate(present):
            if number not in began and any(id(s) in step for s in sequences):
                began[number] = now
    assert len(engine.ended) == sum(n for _, n, *_ in calls)
    assert engine.scheduler.pool.free == blocks
    if blocks >= 40:  # room for one sequence of each
        longest = max(output for *_, output, _ in calls)
        for number, (arrived, _) in enumerate(present):
            assert began[number] - arrived <= longest + 3 * len(calls)
