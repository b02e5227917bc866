"""One simulated instance: chunked prefill and decode in the same step, over a cache of KV blocks.

Requests are started in the order in which they were sent. A step computes up to ``chunk`` tokens: one for each running
sequence, the rest for prompts. While only sequences run, the instance leaps over steps until one of them ends.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from attrs import define, field, frozen, validators
from sage_infer.schemas import InstanceReport

from sage_llm.simulator.cache import BlockCache, Found
from sage_llm.simulator.directory import Directory
from sage_llm.types import Step

__all__ = ["EngineModel", "Job", "SimulatedInstance"]

_POSITIVE = validators.gt(0)


@frozen(kw_only=True)
class EngineModel:
    """Speed and memory of an instance.

    Attributes:
        step: duration of a step by its prompt tokens, sequences and context.
        chunk: maximum number of tokens per step.
        max_batch: maximum number of running sequences.
        blocks: KV blocks in device memory.
        lower: KV blocks in each lower tier, faster tiers first: memory of the host, disk.
        lower_rates: tokens per second that each lower tier loads.
        prefetch: whether KV is loaded while its request waits; otherwise a step waits for it.
    """

    step: Step = field(factory=lambda: Step(0.006, 1 / 20_000, 5e-5, 2e-8))
    chunk: int = field(default=2048, validator=validators.ge(1))
    max_batch: int = field(default=1024, validator=validators.ge(1))
    blocks: int = field(default=2000, validator=validators.ge(1))
    lower: tuple[int, ...] = ()
    lower_rates: tuple[float, ...] = ()
    prefetch: bool = False

    @property
    def rate(self) -> float:
        """Prompt tokens per second, without the constant part of a step."""
        return 1.0 / self.step.per_prompt


@define(eq=False)
class Job:
    """A request on its way through the cluster.

    Attributes:
        number: its position in the trace.
        arrived: time of its arrival.
        prompt_tokens: tokens of its prompt.
        output_tokens: tokens of its output.
        keys: keys of the prompt's full blocks.
        blocks: blocks of prompt and output.
        session: conversation that it belongs to.
        router: gateway that it arrived at.
        done: output tokens of earlier attempts.
        attempts: number of instances that it was sent to.
        slot: instance that it is on; -1 if none.
        first_at: time of its first token; negative before.
        left: prompt tokens still to compute in this attempt.
        estimate: prompt tokens to compute, as they were when it was sent to its instance.
        ready_at: time at which its KV is loaded from lower tiers.
        is_started: whether this attempt has generated a token.
        entered: value of the instance's counter of tokens at the first token of this attempt.
    """

    number: int
    arrived: float
    prompt_tokens: int
    output_tokens: int
    keys: tuple[int, ...]
    blocks: int
    session: str = ""
    router: int = 0
    done: int = 0
    attempts: int = 0
    slot: int = -1
    first_at: float = -1.0
    left: int = 0
    estimate: int = 0
    ready_at: float = 0.0
    is_started: bool = False
    entered: int = 0


OnStart = Callable[[Job, Found, int, float], None]
OnToken = Callable[[Job, float], None]


class SimulatedInstance:
    """An instance with its queue, its batch and its blocks.

    Args:
        slot: its slot.
        model: its speed and memory.
        block: tokens per block.
        directory: receives the events of its blocks.
        wake: called with a time at which ``advance`` is to be called with the present ``version``.
        on_start: called with a job, the blocks found, the tokens to compute and the time when its prefill begins.
        on_first: called with a job and the time of its first token.
        on_end: called with a job and the time of its last token.
    """

    def __init__(
        self, slot: int, model: EngineModel, block: int, directory: Directory,
        wake: Callable[[float, SimulatedInstance], None], on_start: OnStart, on_first: OnToken, on_end: OnToken,
    ) -> None:  # fmt: skip
        self.slot, self.model, self.block = slot, model, block
        self._directory = directory
        self._wake, self._on_start, self._on_first, self._on_end = wake, on_start, on_first, on_end
        self.generation = 1
        self.version = 0
        self.computed = 0  # prompt tokens, over all generations
        self.output_tokens = 0
        self.steps = 0
        self._stalled_until = 0.0
        self._clear()

    def _clear(self) -> None:
        model = self.model
        self.version += 1
        self.cache = BlockCache(self.slot, model.blocks, model.lower, self._directory)
        self.queue: deque[Job] = deque()
        self.jobs: dict[Job, None] = {}  # begun and not ended
        self._current: Job | None = None
        self._ends: list[tuple[int, int, Job]] = []
        self.batch = self.context = 0
        self._tokens = 0  # generated by each running sequence since the start
        self.busy = False
        self._due = 0.0
        self._leap: tuple[float, float, int] | None = None  # begin, duration and number of its steps
        self._prefilled: list[Job] = []
        self._computing = 0  # prompt tokens in the present step
        self.queued = 0
        self._links = [0.0] * len(model.lower)  # when each tier has loaded what it was asked for
        self._seq = 0
        self.step_s: float | None = None
        self._hit_tokens = 0
        self._finished = 0

    def crash(self, now: float) -> list[Job]:
        """Lose all requests and all memory. Returns the requests."""
        lost = self.drop(now)
        self.generation += 1
        self._directory.clear(self.slot)
        self._clear()
        return lost

    def drop(self, now: float) -> list[Job]:
        """Give up all requests; their blocks stay cached. Returns them."""
        self._settle(now)
        lost = [*self.queue, *self.jobs]
        for job in self.jobs:
            self.cache.end(job.keys, job.blocks)
            job.done += 1 + self._tokens - job.entered if job.is_started else 0
        self.queue.clear()
        self.jobs.clear()
        self._current, self._ends, self._prefilled, self._leap = None, [], [], None
        self.batch = self.context = self.queued = 0
        self.busy = False
        self.version += 1
        return lost

    # --- requests

    def submit(self, job: Job, now: float) -> None:
        """Take a job into the queue."""
        found = self.cache.find(job.keys)
        tokens = job.prompt_tokens + job.done
        job.estimate = max(tokens - (found.device + sum(found.tiers)) * self.block, 1)
        job.ready_at = now
        if self.model.prefetch:
            for tier, blocks in enumerate(found.tiers):
                if blocks:
                    self._links[tier] = max(self._links[tier], now) + self._load_s(tier, blocks)
                    job.ready_at = max(job.ready_at, self._links[tier])
        self.queued += job.estimate
        self.queue.append(job)
        if not self.busy:
            self._step(now)
        elif self._leap is not None:
            self._shorten(now)

    def _shorten(self, now: float) -> None:
        """End a leap with the step that is under way."""
        assert self._leap is not None
        start, step_s, steps = self._leap
        done = max(min(steps, math.ceil((now - start) / step_s - 1e-9)), 1)
        if done < steps:
            self._leap = start, step_s, done
            self._schedule(start + done * step_s)

    def _schedule(self, at: float) -> None:
        self.busy, self._due = True, at
        self.version += 1
        self._wake(at, self)

    def stall(self, now: float, seconds: float) -> None:
        """Do nothing for so many seconds."""
        self._stalled_until = max(self._stalled_until, now) + seconds
        if self.busy:
            if self._leap is not None:
                done = self._settle(now)
                start, step_s, steps = self._leap
                self._leap = start + done * step_s + seconds, step_s, steps - done
            self._schedule(self._due + seconds)

    # --- steps

    def advance(self, now: float) -> None:
        """End the present step or leap, and begin the next one."""
        if self._leap is not None:
            steps, self._leap = self._leap[2], None
            self._emit(steps, now)
        elif self.busy:
            self._emit(1, now)
            self.computed += self._computing
            for job in self._prefilled:
                self._first(job, now)
            self._prefilled = []
        self._step(now)

    def _settle(self, now: float) -> int:
        """Count the tokens of the steps of a leap that have ended. Returns the number of these steps."""
        if self._leap is None:
            return 0
        start, step_s, steps = self._leap
        done = max(min(int((now - start) / step_s), steps - 1), 0)
        self._emit(done, now)
        return done

    def _emit(self, steps: int, now: float) -> None:
        self._tokens += steps
        self.steps += steps
        self.context += self.batch * steps
        self.output_tokens += self.batch * steps
        ends = self._ends
        while ends and ends[0][0] <= self._tokens:
            job = heapq.heappop(ends)[2]
            self.batch -= 1
            self.context -= job.prompt_tokens + job.output_tokens
            self._finish(job, now)

    def _first(self, job: Job, now: float) -> None:
        self.output_tokens += 1
        job.is_started, job.entered = True, self._tokens
        self._on_first(job, now)
        left = job.output_tokens - job.done - 1
        if left > 0:
            self.batch += 1
            self.context += job.prompt_tokens + job.done + 1
            heapq.heappush(self._ends, (self._tokens + left, job.number, job))
        else:
            self._finish(job, now)

    def _finish(self, job: Job, now: float) -> None:
        del self.jobs[job]
        self.cache.end(job.keys, job.blocks)
        self._finished += 1
        self._on_end(job, now)

    def _step(self, now: float) -> None:
        model = self.model
        start = max(now, self._stalled_until)
        budget = model.chunk - self.batch
        used, wait_s, later = 0, 0.0, 0.0
        while budget > 0:
            job = self._current
            if job is None:
                if not self.queue or self.batch + len(self._prefilled) >= model.max_batch:
                    break
                job, later = self._next_ready(now)
                if job is None or not self.cache.fits(job.keys, job.blocks):
                    break
                self.queue.remove(job)
                wait_s += self._begin(job, now)
                self._current = job
            take = min(budget, job.left)
            job.left -= take
            used += take
            budget -= take
            self.queued -= take
            if not job.left:
                self._prefilled.append(job)
                self._current = None
        if used:
            self._computing = used
            self.step_s = model.step.predict(used, self.batch, self.context)
            self._schedule(start + self.step_s + wait_s)
        elif self.batch:
            steps = self._ends[0][0] - self._tokens
            step_s = model.step.predict(0, self.batch, self.context + self.batch * steps // 2)
            if later:
                steps = max(min(steps, math.ceil((later - now) / step_s)), 1)
            self._leap, self.step_s = (start, step_s, steps), step_s
            self._schedule(start + steps * step_s)
        else:
            self.busy = False
            self.version += 1
            if later:
                self._wake(later, self)

    def _next_ready(self, now: float) -> tuple[Job | None, float]:
        """The first job whose KV is loaded; None and a time, if the first one will be loaded only then."""
        later = 0.0
        for job in self.queue:
            if job.ready_at <= now + 1e-9:
                return job, 0.0
            later = job.ready_at if not later else min(later, job.ready_at)
        return None, later

    def _begin(self, job: Job, now: float) -> float:
        """Begin the prefill of a job. Returns the time for which the step waits for KV of lower tiers."""
        found = self.cache.find(job.keys)
        tokens = job.prompt_tokens + job.done
        uncached = max(tokens - (found.device + sum(found.tiers)) * self.block, 1)
        self.queued += uncached - job.estimate
        job.left, job.is_started = uncached, False
        self.cache.begin(job.keys, job.blocks)
        self.jobs[job] = None
        self._hit_tokens += tokens - uncached
        self._on_start(job, found, uncached, now)
        if self.model.prefetch:
            return 0.0
        return sum(map(self._load_s, range(len(found.tiers)), found.tiers))

    def _load_s(self, tier: int, blocks: int) -> float:
        return blocks * self.block / self.model.lower_rates[tier]

    # --- reports

    def report(self, instance_id: str, now: float) -> InstanceReport:
        """The present load, as a real instance reports it."""
        self._seq += 1
        used, total = self.cache.used, self.cache.capacity
        return InstanceReport(
            instance_id=instance_id,
            generation=self.generation,
            seq=self._seq,
            taken_at=now,
            state="ready",
            running=self.batch,
            waiting=len(self.queue),
            waiting_prompt_tokens=max(self.queued, 0),
            running_context_tokens=self.context,
            steps=self.steps,
            step_s=self.step_s,
            kv_blocks_total=total,
            kv_blocks_free=total - used,
            kv_blocks_cached=self.cache.cached,
            finished=self._finished,
            prompt_tokens=self.computed,
            output_tokens=self.output_tokens,
            prefix_hit_tokens=self._hit_tokens,
        )
