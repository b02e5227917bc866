"""Send requests with fixed concurrency (closed loop), or at times independent of the server (open loop).

In an open loop, the latency of a request counts from its scheduled time, not from its send time: a server or client
that falls behind cannot hide the delay ("coordinated omission", Tene 2013).
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any

from attrs import define, field
from sage_infer.compat import TaskGroup, timeout

from sage_infer_serve.bench.replies import BadAnswer, StreamReader, Usage, error_message, read_answer
from sage_infer_serve.bench.workload import Request, Workload, path_of
from sage_infer_serve.http.client import Client, Disconnected

__all__ = ["Outcome", "Run", "Sender", "closed_loop", "open_loop"]


@define(kw_only=True)
class Outcome:
    """Result of one request. Times are those of ``time.perf_counter``; ``error`` is None on success.

    Attributes:
        due: scheduled time; latencies count from here.
        sent: actual send time.
        first: time of the first text; None for an unstreamed answer, an error, or an answer without text.
        gaps: seconds between chunks with text.
        counted: whether the token counts are the server's; otherwise chunks are counted, and prompts are not.
        cached_tokens: prompt tokens that the server did not compute; None if it does not say.
    """

    due: float
    sent: float
    ended: float = 0.0
    first: float | None = None
    gaps: array[float] = field(factory=lambda: array("d"))
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted: bool = False
    cached_tokens: int | None = None
    texts: int = 0
    error: str | None = None


@define(kw_only=True)
class Run:
    """All completed requests.

    Attributes:
        began, ended: times of ``time.perf_counter``.
        cpu_s: CPU time of this process.
        interrupted: whether the run was cancelled; requests open at that time are not in ``outcomes``.
    """

    began: float
    ended: float = 0.0
    cpu_s: float = 0.0
    outcomes: list[Outcome] = field(factory=list)
    interrupted: bool = False


class Sender:
    """Sends a workload's requests and reads the responses. ``timeout_s`` limits one whole response."""

    def __init__(self, client: Client, workload: Workload, *, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._path = path_of(workload.endpoint)
        self._embeddings = workload.endpoint == "embeddings"
        self._stream = workload.stream and not self._embeddings

    async def send(self, request: Request, due: float | None = None) -> Outcome:
        """``due`` defaults to now. Errors are recorded in the outcome."""
        sent = time.perf_counter()
        outcome = Outcome(due=sent if due is None else due, sent=sent)
        reader = StreamReader() if self._stream else None
        try:
            async with timeout(self._timeout_s):
                answer = await self._client.post(
                    self._path, request.body, None if reader is None else reader.feed
                )
            if answer.status != 200:
                raise BadAnswer(f"HTTP {answer.status}: {error_message(answer.body)}")
            if reader is None:
                usage = read_answer(answer.body, embeddings=self._embeddings)
            else:
                reader.end()
                usage = reader.usage
        except TimeoutError:
            outcome.error = f"no complete answer within {self._timeout_s:g} s"
        except (BadAnswer, Disconnected) as error:
            outcome.error = str(error)
        else:
            _take(outcome, reader, usage)
            outcome.texts = request.texts
        outcome.ended = time.perf_counter()
        return outcome


def _take(outcome: Outcome, reader: StreamReader | None, usage: Usage | None) -> None:
    if reader is not None:
        outcome.first, outcome.gaps, outcome.output_tokens = reader.first, reader.gaps, reader.chunks
    if usage is not None:
        outcome.prompt_tokens, outcome.output_tokens = usage.prompt_tokens, usage.completion_tokens
        outcome.cached_tokens, outcome.counted = usage.cached_tokens, True


OnOutcome = Callable[[Outcome], None]


async def closed_loop(
    sender: Sender,
    requests: Iterator[Request],
    *,
    concurrency: int,
    count: int | None,
    duration_s: float | None,
    on_outcome: OnOutcome,
) -> Run:
    """Keep ``concurrency`` requests open until ``count`` were sent, or for ``duration_s``; then wait for open ones."""
    left = requests if count is None else islice(requests, count)
    run = Run(began=time.perf_counter())
    until = None if duration_s is None else run.began + duration_s

    async def keep_one_open() -> None:
        while until is None or time.perf_counter() < until:
            request = next(left, None)
            if request is None:
                return
            outcome = await sender.send(request)
            run.outcomes.append(outcome)
            on_outcome(outcome)

    await _measured(run, [keep_one_open() for _ in range(concurrency)])
    return run


async def open_loop(
    sender: Sender,
    requests: Iterator[Request],
    times: Iterator[float],
    *,
    count: int | None,
    duration_s: float | None,
    on_outcome: OnOutcome,
) -> Run:
    """Send a request at each of ``times`` (seconds from the start), independent of earlier ones."""
    run = Run(began=time.perf_counter())

    async def one(request: Request, due: float) -> None:
        outcome = await sender.send(request, due)
        run.outcomes.append(outcome)
        on_outcome(outcome)

    async def arrive() -> None:
        async with TaskGroup() as tasks:
            for at in times if count is None else islice(times, count):
                if duration_s is not None and at >= duration_s:
                    return
                request = next(
                    requests
                )  # built ahead of its scheduled time, so that building it causes no delay
                due = run.began + at
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(one(request, due))

    await _measured(run, [arrive()])
    return run


async def _measured(run: Run, work: list[Coroutine[Any, Any, None]]) -> None:
    """Run the whole load. A cancellation ends it early and keeps the results so far."""
    cpu = time.process_time()
    try:
        async with TaskGroup() as tasks:
            for part in work:
                tasks.create_task(part)
    except asyncio.CancelledError:
        run.interrupted = True
    run.ended = time.perf_counter()
    run.cpu_s = time.process_time() - cpu
