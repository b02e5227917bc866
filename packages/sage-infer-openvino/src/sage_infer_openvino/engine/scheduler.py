"""Schedules engine steps in terms of tokens and blocks, independent of OpenVINO and threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from sage_infer_openvino.engine.block_pool import BlockPool
from sage_infer_openvino.engine.kv_events import KVEventLog
from sage_infer_openvino.engine.page_store import NewKeyChain, PageStore
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState
from sage_infer_openvino.engine.tenants import BatchShares, StepShares, TenantLimits, TenantWork
from sage_infer_openvino.engine.waiting import WaitingLines, turn

__all__ = ["Scheduler"]


class Scheduler:
    """Continuous batching with chunked prefill and shared prefixes.

    Every step runs one token of each decoding sequence, and prompt tokens up to the token budget ``step_tokens``.
    Blocks are allocated on demand; if none is free, the most recent sequence is preempted and recomputed later.

    A sequence starts with the cached blocks of its prefix, identified by ``key_chain`` (None disables the cache). A
    sequence whose prefix is being computed for another one waits for it, as do ``n`` completions of one prompt.

    Tenants share the batch, and the calls of a tenant its part: the next sequence to start is one of the tenant, and
    there of the call, with the fewest running ones. If there is no room for it, the latest sequence of a tenant or call
    with at least two more is paused; it keeps its blocks unless they are needed.

    A waiting sequence may have blocks, if it was paused, or was held after prefill and continued by ``decode``.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_batch_size: int,
        step_tokens: int,
        key_chain: NewKeyChain | None = None,
        events: KVEventLog | None = None,
        pages: PageStore | None = None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_batch_size = max_batch_size
        self.step_tokens = max(step_tokens, max_batch_size)  # so that every decoding sequence can run
        self.running: list[SequenceState] = []
        self.waiting = WaitingLines()
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self._key_chain = key_chain
        self._events = events
        self._pages = pages
        self._work = TenantWork()

    def add(self, sequence: SequenceState) -> None:
        self.waiting.add(sequence)

    def remove(self, sequence: SequenceState) -> None:
        """Remove a sequence and free its blocks."""
        self.detach(sequence)
        self.pool.release(sequence.blocks)

    def detach(self, sequence: SequenceState) -> None:
        """Remove a sequence without freeing its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def blocks_for(self, requests: Iterable[EngineRequest]) -> int:
        """Total blocks of these requests' prompts. Unlike other methods, safe to call from any thread."""
        shared: set[bytes] = set()
        own = 0
        for request in requests:
            prompt = request.prompt
            keys = self._key_chain(request.salt).extend(prompt[:-1]) if self._key_chain is not None else []
            shared.update(keys)
            own += -(-len(prompt) // self.block_size) - len(keys)
        return own + len(shared)

    def next_step(
        self,
        beside_decodes: Callable[[int, int, int], int] | None = None,
        limits: TenantLimits | None = None,
    ) -> list[tuple[SequenceState, int]]:
        """Sequences of the next step with their number of tokens; their blocks are allocated.

        ``beside_decodes(decoding, prompts, limit)`` returns the maximum number of prompt tokens, from 1 to ``limit``,
        in a step with ``decoding`` decoding sequences and prompts of ``prompts`` calls. ``limits`` apply while there
        are several tenants; one of them comes first (``TenantWork.first``). The step is empty only if held sequences
        have all the required blocks.
        """
        self._share_batch()
        step: list[tuple[SequenceState, int]] = []
        in_turn = sorted(self.running, key=self._rank())
        requests = [*(s.request for s in in_turn), *self.waiting.requests()]
        first = self._work.first(requests) if limits is not None else None

        def goes_first(sequence: SequenceState) -> bool:
            return first is None or sequence.request.tenant == first

        # Decodes first: they need one token each, and their output is being streamed.
        shares = StepShares(requests, self.max_batch_size, limits)
        decoding = [s for s in in_turn if s.remaining == 1 and shares.take(s)]
        budget = self._advance(decoding, self.step_tokens, step)
        # Only from the second token on, so that a burst of requests is prefilled together and decodes in one batch.
        streams = [s for s, _ in step if goes_first(s)]
        if budget and beside_decodes is not None and any(s.new_length > 1 for s in streams):
            calls = {r.call for r in self.waiting.requests() if first in (None, r.tenant)}
            calls |= {s.request.call for s in in_turn if s.remaining > 1 and goes_first(s)}
            prompts = min(len(calls), self.max_batch_size - len(streams))
            budget = beside_decodes(len(streams), prompts, budget)
        if limits is not None and self._work.is_shared():
            budget = min(budget, limits.prompt_alone())
        decodes = len(step)
        budget = self._prefill(filter(goes_first, in_turn), budget, step, shares, first)
        if limits is not None and first is not None:
            if any(map(goes_first, (s for s, _ in step))):
                tokens = sum(count for _, count in step[decodes:])
                budget = min(budget, limits.prompt_beside(decodes, tokens))
            self._prefill(in_turn, budget, step, shares)
        if not step and self.waiting:
            # No running sequence can free blocks, so the order of arrival is ignored: start any sequence that fits, or
            # else preempt waiting sequences that have blocks.
            fitting = next(filter(self._fits, self.waiting), None) or next(
                filter(self._reclaim, self.waiting), None
            )
            if fitting is not None:
                self._start(fitting, self.step_tokens, step)
        self._work.ran(step)
        return step

    def _prefill(
        self,
        in_turn: Iterable[SequenceState],
        budget: int,
        step: list[tuple[SequenceState, int]],
        shares: StepShares,
        tenant: str | None = None,
    ) -> int:
        """Schedule prompts of running sequences and start waiting ones, of one tenant or all; returns the remaining
        budget.
        """
        done = {id(sequence) for sequence, _ in step}
        prompts = [s for s in in_turn if s.remaining > 1 and id(s) not in done]
        budget = self._advance(prompts, budget, step)
        in_progress = self._keys_in_progress() if self.waiting else set()
        while budget and self.waiting and len(self.running) < self.max_batch_size:
            sequence = self.waiting.next(
                self.running,
                lambda s: (
                    tenant in (None, s.request.tenant)
                    and shares.allows(s)
                    and self._next_key(s) not in in_progress
                ),
            )
            if sequence is None or not self._fits(sequence):
                break
            shares.take(sequence)
            budget -= self._start(sequence, budget, step)
            in_progress.update(self._keys_to_come(sequence))
        return budget

    def computed(self, sequence: SequenceState, count: int) -> None:
        """Record that ``count`` more tokens have KV, and publish the blocks filled by them."""
        full = sequence.computed // self.block_size
        sequence.computed += count
        if sequence.computed // self.block_size > full:
            keys = self._keys(sequence)
            for i in range(full, min(sequence.computed // self.block_size, len(keys))):
                is_new = self._publish(sequence, keys, i)
                if is_new and self._pages is not None and not sequence.request.is_private:
                    self._pages.save(keys[i], sequence.blocks[i])

    def _publish(self, sequence: SequenceState, keys: Sequence[bytes], i: int) -> bool:
        """Cache the sequence's block ``i``; False if its content is already cached."""
        is_new = self.pool.publish(sequence.blocks[i], keys[i])
        if is_new and self._events is not None:
            tokens = tuple(sequence.tokens[i * self.block_size : (i + 1) * self.block_size])
            self._events.stored(keys[i], keys[i - 1] if i else None, tokens, sequence.request.salt)
        return is_new

    def _advance(
        self, sequences: Iterable[SequenceState], budget: int, step: list[tuple[SequenceState, int]]
    ) -> int:
        """Schedule running sequences in order, within token budget and free blocks; returns the remaining budget."""
        for sequence in sequences:
            if sequence not in self.running:
                continue  # just preempted
            count = min(sequence.remaining, budget)
            if count and self._make_room(sequence, count, {id(s) for s, _ in step}):
                step.append((sequence, count))
                budget -= count
        return budget

    def _next_waiting(self, in_progress: Collection[bytes]) -> SequenceState | None:
        return self.waiting.next(self.running, lambda sequence: self._next_key(sequence) not in in_progress)

    def _share_batch(self) -> None:
        """Make room for the next waiting sequence, if tenants or calls with more sequences than its own can give way.

        It is compared with other tenants by tenant, and within its own tenant by call.
        """
        if not self.waiting or len(self.running) < 2:
            return
        if len({s.request.call for s in self.running}) == len(self.running) and len(self._tenants()) == 1:
            return
        sequence = self._next_waiting(self._keys_in_progress())
        if sequence is None:
            return
        shares = BatchShares(sequence.request, self.running)
        givers = shares.givers()
        if not givers:
            return
        if not self._fits(sequence):
            idle = [s for s in self.waiting if s.blocks and s is not sequence and shares.may_give(s)]
            if not self._reclaim(sequence, [*shares.spare(givers), *idle]):
                return
            # Now, or those that decode would take the blocks before its turn in this step.
            self._share_prefix(sequence)
            self._grow(sequence, sequence.remaining)
        if len(self.running) >= self.max_batch_size:
            self._pause(givers[-1])

    def _tenants(self) -> set[str]:
        return self.waiting.tenants() | {sequence.request.tenant for sequence in self.running}

    def _pause(self, sequence: SequenceState) -> None:
        """Let a running sequence wait with its blocks."""
        self.detach(sequence)
        self.add(sequence)

    def _start(self, sequence: SequenceState, budget: int, step: list[tuple[SequenceState, int]]) -> int:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._share_prefix(sequence)
        count = min(sequence.remaining, budget)
        self._grow(sequence, count)
        step.append((sequence, count))
        return count

    def _share_prefix(self, sequence: SequenceState) -> None:
        """Give a sequence without blocks the cached ones of its prefix."""
        found = self._found(sequence)
        for block in found:
            self.pool.share(block)
        is_new = not sequence.blocks
        sequence.blocks += found
        reused = (len(found) + (self._load(sequence) if is_new else 0)) * self.block_size
        sequence.computed += reused
        if sequence.new_length == 0:
            self.prefix_hit_tokens += reused
            if sequence.request.cached_tokens is None:
                sequence.request.cached_tokens = min(reused, sequence.prompt_length)

    def _load(self, sequence: SequenceState) -> int:
        """Append blocks with the fetched pages that follow the sequence's blocks; returns how many blocks.

        There is room: these blocks are part of those that the sequence needs for its prompt.
        """
        fetched, before = sequence.request.fetched, len(sequence.blocks)
        sequence.request.fetched = None
        if fetched is None or self._pages is None:
            return 0
        keys = self._shareable(sequence)
        for i in range(before, len(keys)):
            block, page = self.pool.find(keys[i]), fetched.take(keys[i])
            if block is not None:
                self.pool.share(block)
                sequence.blocks.append(block)
            elif page is not None:
                sequence.blocks += self.pool.allocate(1)
                self._pages.load(sequence.blocks[i], page)
                self._publish(sequence, keys, i)
            else:
                break
        return len(sequence.blocks) - before

    # --- cached prefixes

    def _keys(self, sequence: SequenceState) -> list[bytes]:
        if self._key_chain is None:
            return []
        chain = sequence.key_chain
        if chain is None:
            chain = sequence.key_chain = self._key_chain(sequence.request.salt)
        if len(chain.keys) < len(sequence.tokens) // self.block_size:
            chain.extend(sequence.tokens[chain.length :])
        return chain.keys

    def _shareable(self, sequence: SequenceState) -> list[bytes]:
        """Keys of the blocks that could be reused: at least one token must be computed."""
        return self._keys(sequence)[: (len(sequence.tokens) - 1) // self.block_size]

    def _found(self, sequence: SequenceState) -> list[int]:
        """Cached blocks of a waiting sequence's prefix."""
        found: list[int] = []
        for key in self._shareable(sequence) if not sequence.blocks else ():
            block = self.pool.find(key)
            if block is None:
                break
            found.append(block)
        return found

    def _next_key(self, sequence: SequenceState) -> bytes | None:
        """Key of the first uncached block of its prefix."""
        rest = self._shareable(sequence)[len(sequence.blocks) or len(self._found(sequence)) :]
        return rest[0] if rest else None

    def _keys_in_progress(self) -> set[bytes]:
        """Keys of the blocks that running sequences are computing from existing tokens."""
        return {key for sequence in self.running for key in self._keys_to_come(sequence)}

    def _keys_to_come(self, sequence: SequenceState) -> list[bytes]:
        return self._keys(sequence)[sequence.computed // self.block_size :] if sequence.remaining > 1 else []

    # --- blocks

    def _fits(self, sequence: SequenceState) -> bool:
        """Whether there is room for the whole prompt, so that it does not immediately preempt another."""
        return self._needed(sequence) <= self.pool.free

    def _needed(self, sequence: SequenceState) -> int:
        """Free blocks needed to start a waiting sequence; shared blocks cost nothing."""
        shared = sum(self.pool.ref_count(block) > 0 for block in self._found(sequence))
        return self._missing_blocks(sequence, sequence.remaining) - shared

    def _reclaim(self, sequence: SequenceState, holders: list[SequenceState] | None = None) -> bool:
        """Free blocks of ``holders``, last first, until this one fits; False if it cannot.

        By default they are all other waiting sequences.
        """
        if holders is None:
            holders = [other for other in self.waiting if other.blocks and other is not sequence]
        taken = Counter(block for holder in holders for block in holder.blocks)
        for block in self._found(sequence):
            del taken[block]  # shared with this sequence's prefix
        to_free = sum(self.pool.ref_count(block) == count for block, count in taken.items())
        if self._needed(sequence) > self.pool.free + to_free:
            return False
        while self._needed(sequence) > self.pool.free:
            self._preempt(holders.pop())
        return True

    def _missing_blocks(self, sequence: SequenceState, count: int) -> int:
        return -(-(sequence.computed + count) // self.block_size) - len(sequence.blocks)

    def _grow(self, sequence: SequenceState, count: int) -> None:
        missing = self._missing_blocks(sequence, count)
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)

    def _make_room(self, sequence: SequenceState, count: int, in_step: Collection[int]) -> bool:
        """Allocate blocks for a running sequence, preempting later ones; False if it must wait."""
        while self._missing_blocks(sequence, count) > self.pool.free:
            victim = self._victim(in_step)
            if victim is sequence and in_step:
                return False  # sequences of this step will free blocks; until then it keeps its own
            self._preempt(victim)
            if victim is sequence:
                return False
        self._grow(sequence, count)
        return True

    def _victim(self, in_step: Collection[int]) -> SequenceState:
        """The latest sequence of the largest call among those outside of the step."""
        return max((s for s in self.running if id(s) not in in_step), key=self._rank())

    def _rank(self) -> Callable[[SequenceState], tuple[int, int, int, tuple[int, float, int]]]:
        """Order in which running sequences get blocks: those of small tenants, by priority, small calls, by arrival."""
        calls = Counter(sequence.request.call for sequence in self.running)
        tenants = Counter(sequence.request.tenant for sequence in self.running)

        def rank(sequence: SequenceState) -> tuple[int, int, int, tuple[int, float, int]]:
            request = sequence.request
            return tenants[request.tenant], request.priority, calls[request.call], turn(sequence)

        return rank

    def _preempt(self, sequence: SequenceState) -> None:
        self.remove(sequence)
        sequence.computed = 0
        self.preemptions += 1
        self.add(sequence)
