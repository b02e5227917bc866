"""Invariants of the scheduler, for any order of events."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from openvino_toy import toy_tokenizer
from sage_infer.contracts import KeyChain
from sage_infer.schemas import KVCacheSchema, SamplingParams
from sage_infer_openvino.engine.block_pool import BlockPool
from sage_infer_openvino.engine.scheduler import Scheduler
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

BLOCK, BLOCKS, BATCH, STEP = 4, 12, 4, 10
SCHEMA = KVCacheSchema(dtype="fp32", page_size=BLOCK, num_layers=1, num_heads=1, head_dim=1)
TOKENIZER = toy_tokenizer()
LOOP = asyncio.new_event_loop()
LOOP.close()
ARRIVALS = itertools.count()


def key_chain(salt: bytes = b"") -> KeyChain:
    return KeyChain("toy", SCHEMA, salt=salt)


def make(prompt: int, output: int, priority: int = 0, first: int = 0) -> SequenceState:
    request = EngineRequest(
        request_id="r",
        params=SamplingParams(),
        prompt=(first, *range(1, prompt)),
        loop=LOOP,
        priority=priority,
        arrived_at=next(ARRIVALS),
    )
    sequence = SequenceState(
        request=request,
        index=0,
        tokens=list(request.prompt),
        prompt_length=prompt,
        max_length=min(prompt + output, BLOCK * BLOCKS),
        detokenizer=TOKENIZER.detokenizer(),
        stop_strings=None,
    )
    request.sequences = [sequence]
    return sequence


def scheduler(*, blocks: int = BLOCKS, caching: bool = False, **options: int) -> Scheduler:
    sizes = {"block_size": BLOCK, "max_batch_size": BATCH, "step_tokens": STEP, **options}
    return Scheduler(BlockPool(blocks), **sizes, key_chain=key_chain if caching else None)


def advance(scheduler: Scheduler) -> list[tuple[SequenceState, int]]:
    """One engine step without a model; sequences at their full length leave."""
    step = scheduler.next_step()
    for sequence, count in step:
        scheduler.computed(sequence, count)
        if sequence.computed == len(sequence.tokens):
            sequence.tokens.append(0)
            if len(sequence.tokens) >= sequence.max_length:
                scheduler.remove(sequence)
    return step


def turn(sequence: SequenceState) -> tuple[int, float]:
    return sequence.request.priority, sequence.request.arrived_at


class Sequences(RuleBasedStateMachine):
    caching = False

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler(caching=self.caching)
        self.live: list[SequenceState] = []
        self.held: list[SequenceState] = []
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}

    sequences = Bundle("sequences")

    @rule(
        target=sequences,
        prompt=st.integers(1, 30),
        output=st.integers(1, 30),
        priority=st.integers(-1, 1),
        first=st.integers(0, 1),
    )
    def add(self, prompt: int, output: int, priority: int, first: int) -> SequenceState:
        sequence = make(prompt, output, priority, first)
        self.live.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    @rule()
    def step(self) -> None:
        before = {id(s) for s in self.scheduler.running}
        decoding = [s for s in self.scheduler.running if s.computed == len(s.tokens) - 1]
        total = len(self.scheduler.waiting) + len(before)
        step = self.scheduler.next_step()
        assert sum(count for _, count in step) <= STEP
        assert len(self.scheduler.running) <= BATCH
        assert len({id(s) for s, _ in step}) == len(step)
        for sequence, count in step:
            assert 0 < count <= len(sequence.tokens) - sequence.computed
            assert len(sequence.blocks) * BLOCK >= sequence.computed + count
            assert sequence in self.scheduler.running
        # Every decoding sequence goes on, unless it was pushed out.
        in_step = {id(s) for s, _ in step}
        assert (
            all(id(s) in in_step or s in self.scheduler.waiting for s in decoding)
            or self.scheduler.pool.free == 0
        )
        # Nobody starts before his turn, unless nothing else could run, or the other's prefix is being computed.
        started = [s for s, _ in step if id(s) not in before]
        if len(step) > 1 and started and self.scheduler.waiting and not self.caching:
            assert max(map(turn, started)) < min(map(turn, self.scheduler.waiting))
        assert step or not total or self.held
        for sequence, count in step:
            self.compute(sequence, count)
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(0)
                if len(sequence.tokens) >= sequence.max_length:
                    self.scheduler.remove(sequence)
                    self.live.remove(sequence)

    @rule(sequence=consumes(sequences))
    def cancel(self, sequence: SequenceState) -> None:
        self.scheduler.remove(sequence)
        for where in (self.live, self.held):
            if sequence in where:
                where.remove(sequence)

    @precondition(lambda self: any(s.tokens for s in self.scheduler.running))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.scheduler.running))
        self.scheduler.detach(sequence)
        self.live.remove(sequence)
        self.held.append(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.held))
        self.held.remove(sequence)
        self.live.append(sequence)
        self.scheduler.add(sequence)

    @invariant()
    def every_block_is_counted(self) -> None:
        pool = self.scheduler.pool
        holders = Counter(block for sequence in [*self.live, *self.held] for block in sequence.blocks)
        assert all(pool.ref_count(block) == holders[block] for block in range(BLOCKS))
        assert pool.free + len(holders) == BLOCKS
        assert pool.cached <= pool.free
        assert self.caching or max(holders.values(), default=1) == 1
        queued = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(map(id, queued)) == sorted(map(id, self.live))
        assert [turn(s) for s in self.scheduler.waiting] == sorted(turn(s) for s in self.scheduler.waiting)

    def compute(self, sequence: SequenceState, count: int) -> None:
        """What a model would do: read the KV of all tokens before, and write that of the new ones."""
        for position in range(sequence.computed + count):
            place = sequence.blocks[position // BLOCK], position % BLOCK
            prefix = tuple(sequence.tokens[: position + 1])
            if position >= sequence.computed:
                self.content[place] = prefix
            assert self.content[place] == prefix
        self.scheduler.computed(sequence, count)

    def teardown(self) -> None:
        for sequence in list(self.held):
            self.scheduler.add(sequence)
            self.live.append(sequence)
            self.held.remove(sequence)
        bound = sum(s.max_length for s in self.live) * 40 + 10
        for _ in range(bound):
            if not self.live:
                break
            self.step()
            self.every_block_is_counted()
        assert not self.live, "a sequence never finished"
        assert self.scheduler.pool.free == BLOCKS


class SharingSequences(Sequences):
    caching = True


TestSequences = Sequences.TestCase
TestSharingSequences = SharingSequences.TestCase
TestSequences.settings = TestSharingSequences.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None
)


def test_decodes_go_before_prompts_and_prompts_share_the_rest() -> None:
    s = scheduler()
    first, long, short = make(3, 9), make(20, 9), make(2, 9)
    s.add(first)
    advance(s)
    s.add(long)
    s.add(short)
    assert [(x, n) for x, n in advance(s)] == [(first, 1), (long, 9)]
    assert [(x, n) for x, n in advance(s)] == [(first, 1), (long, 9)]
    assert [(x, n) for x, n in advance(s)] == [(first, 1), (long, 2), (short, 2)]


def test_prompts_beside_decodes_are_limited() -> None:
    def two_at_most(decoding: int, prompts: int, limit: int) -> int:
        assert (decoding, prompts) == (1, 1)  # the other prompt has no room to run yet
        return min(2, limit)

    s = scheduler(max_batch_size=2)
    first, long = make(3, 9), make(20, 9)
    s.add(first)
    assert s.next_step(two_at_most) == [(first, 3)]  # nobody decodes yet
    s.computed(first, 3)
    first.tokens.append(0)
    s.add(long)
    s.add(make(4, 9))
    assert s.next_step(two_at_most) == [(first, 1), (long, 9)]  # its first token has only just come
    s.computed(first, 1)
    s.computed(long, 9)
    first.tokens.append(0)
    assert s.next_step(two_at_most) == [(first, 1), (long, 2)]
    s.computed(first, 1)
    s.computed(long, 2)
    first.tokens.append(0)
    assert s.next_step(two_at_most) == [(first, 1), (long, 2)]


def test_a_smaller_priority_starts_first() -> None:
    s = scheduler(max_batch_size=1)
    late, urgent = make(4, 4), make(4, 4, priority=-1)
    s.add(late)
    s.add(urgent)
    assert advance(s)[0][0] is urgent


def test_the_most_recent_sequence_is_preempted_and_recomputed() -> None:
    s = scheduler(blocks=4)
    first, last = make(8, 8), make(7, 8)
    s.add(first)
    s.add(last)
    advance(s)
    while last in s.running:
        advance(s)
    assert s.preemptions == 1
    assert (last.blocks, last.computed, last.tokens[:7]) == ([], 0, list(range(7)))
    tokens = len(last.tokens)
    while first in s.running:
        advance(s)
    advance(s)
    assert last in s.running
    assert len(last.tokens) >= tokens


def stuck(*prompts: int) -> tuple[Scheduler, list[SequenceState]]:
    """A scheduler whose blocks are all in the hands of sequences that were held after their prompt."""
    s = scheduler(blocks=4, step_tokens=64)
    sequences = [make(prompt, 5) for prompt in prompts]
    for sequence in sequences:
        s.add(sequence)
    advance(s)
    for sequence in sequences:
        s.detach(sequence)
    assert s.pool.free == 0
    return s, sequences


def test_two_that_come_back_and_need_more_do_not_wait_for_each_other() -> None:
    s, sequences = stuck(8, 8)
    for sequence in sequences:
        s.add(sequence)
    while s.running or s.waiting:
        assert advance(s)
    assert s.preemptions == 1
    assert s.pool.free == 4


def test_a_fitting_sequence_does_not_wait_behind_another() -> None:
    s, (held, back) = stuck(8, 7)
    s.add(make(4, 5, priority=-1))
    assert advance(s) == []  # nothing until somebody gives blocks back
    s.add(back)
    assert [sequence for sequence, _ in advance(s)] == [back]  # it has room for one more token
    s.remove(held)
    while s.running or s.waiting:
        assert advance(s)


def test_small_steps_are_as_large_as_the_batch() -> None:
    s = scheduler(max_batch_size=8, step_tokens=2, blocks=40)
    for _ in range(8):
        s.add(make(1, 10))
    assert len(advance(s)) == 8
    assert len(advance(s)) == 8


# --- shared prefixes


def test_a_prefix_is_shared_while_held_and_found_when_free() -> None:
    s = scheduler(caching=True, step_tokens=64)
    first, second, other = make(12, 9), make(10, 9), make(12, 9, first=5)
    s.add(first)
    advance(s)
    s.add(second)
    s.add(other)
    assert advance(s) == [(first, 1), (second, 2), (other, 12)]
    assert second.blocks[:2] == first.blocks[:2]
    assert (second.request.cached_tokens, other.request.cached_tokens) == (8, 0)
    for sequence in (first, second, other):
        s.remove(sequence)
    assert (s.pool.free, s.pool.cached) == (BLOCKS, 6)
    again = make(12, 9)
    s.add(again)
    assert advance(s) == [(again, 4)]  # never all of it: the last token's logits are needed
    assert s.prefix_hit_tokens == 16


def test_sequences_wait_for_a_prefix_being_computed() -> None:
    s = scheduler(caching=True, step_tokens=8)
    first, same, other = make(18, 9), make(18, 9), make(3, 9, first=5)
    for sequence in (first, same, other):
        s.add(sequence)
    assert advance(s) == [(first, 8)]
    assert advance(s) == [(first, 8)]
    assert advance(s) == [(first, 2), (same, 2), (other, 3)]
    assert same.request.cached_tokens == 16
    assert same.blocks[:4] == first.blocks[:4]


def test_blocks_that_are_needed_are_forgotten_oldest_use_first() -> None:
    pool = BlockPool(4)
    a, b = pool.allocate(2), pool.allocate(2)
    for blocks, name in ((a, b"a"), (b, b"b")):
        for i, block in enumerate(blocks):
            pool.publish(block, name + bytes([i]))
    a0 = a[0]
    pool.publish(b[0], b"other name")  # it has one already, and keeps it
    pool.release(a)
    pool.release(b)
    assert pool.cached == 4
    pool.share(a0)
    first = pool.allocate(1)
    assert pool.find(b"a\x01") is None  # the end of what was given back first
    assert pool.find(b"a\0") == a0
    assert pool.allocate(2)
    assert (pool.free, pool.find(b"b\0"), pool.find(b"other name")) == (0, None, None)
    pool.release(first)
    assert (pool.free, pool.cached) == (1, 0)


def test_blocks_are_not_taken_for_a_prefix_that_lies_in_them() -> None:
    """Who waits with blocks has the very prefix of who needs them: taking them would not make room."""
    s = scheduler(caching=True, blocks=12, step_tokens=64)
    waiting, held = make(11, 9), make(29, 9, first=1)
    for sequence in (waiting, held):
        s.add(sequence)
    advance(s)
    for sequence in (waiting, held):
        s.detach(sequence)
    waiting.tokens += [0] * 5  # it has come far enough to need another block
    s.add(waiting)
    s.add(make(17, 3, priority=-1))
    assert s.next_step() == []
    assert len(waiting.blocks) == 3


def test_a_sequence_that_grows_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    extend = KeyChain.extend

    def counted(chain: KeyChain, tokens: Sequence[int]) -> list[bytes]:
        hashed.append(len(tokens))
        return extend(chain, tokens)

    monkeypatch.setattr(KeyChain, "extend", counted)
    s = scheduler(caching=True)
    sequence = make(9, 30)
    s.add(sequence)
    while s.running or s.waiting:
        advance(s)
    assert len(sequence.tokens) == 39
    assert sum(hashed) <= 39
