"""Conversion of vLLM's outputs to deltas: tokens, ends, errors, usage and timing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from sage_infer.contracts import TokenStream
from sage_infer.errors import EngineDead, RequestCancelled, SageInferError
from sage_infer.schemas import TokenDelta
from sage_infer_vllm.requests.delivery import Delivery
from vllm_toys import completion, output


class Ends:
    """Counts what a delivery reports."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.ended: list[str] = []

    def delivery(self, logprobs: int | None = None) -> Delivery:
        return Delivery(
            "r", prompt_tokens=5, logprobs=logprobs,
            cancel=lambda d: self.cancelled.append(d.request_id), ended=lambda d: self.ended.append(d.request_id),
        )  # fmt: skip


def read(stream: TokenStream) -> list[TokenDelta]:
    async def collect() -> list[TokenDelta]:
        return [delta async for delta in stream]

    return asyncio.run(collect())


def test_tokens_become_deltas() -> None:
    ends = Ends()
    delivery = ends.delivery()
    delivery.take(output(completion("He", (1,))))
    delivery.take(output(completion("llo", (2, 3))))
    delivery.take(output(completion("!", (4,), reason="length"), finished=True, cached=4))
    assert read(delivery.stream) == [
        TokenDelta("He", (1,)),
        TokenDelta("llo", (2, 3)),
        TokenDelta("!", (4,), finish_reason="length"),
    ]
    usage, timing = delivery.stream.usage, delivery.stream.timing
    assert usage is not None
    assert timing is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 4, 4)
    assert 0 <= timing.queue_s <= timing.ttft_s <= timing.total_s
    assert timing.inter_token_s is not None
    assert delivery.stream.finish_reason == "length"
    assert (ends.ended, ends.cancelled) == (["r"], [])


def test_several_completions_end_one_by_one() -> None:
    ends = Ends()
    delivery = ends.delivery()
    delivery.take(output(completion("a", (1,), 0), completion("b", (2,), 1)))
    delivery.take(output(completion("", (), 1, "stop")))
    assert ends.ended == []
    delivery.take(output(completion("c", (3,), 0, "length"), finished=True))
    assert [(d.index, d.text, d.finish_reason) for d in read(delivery.stream)] == [
        (0, "a", None), (1, "b", None), (1, "", "stop"), (0, "c", "length"),
    ]  # fmt: skip
    assert delivery.stream.finish_reason == "length"  # completion 0's


def test_an_aborted_request_is_cancelled_for_its_reader() -> None:
    ends = Ends()
    delivery = ends.delivery()
    delivery.take(output(completion("a", (1,))))
    delivery.take(output(completion("", (), reason="abort"), finished=True))
    with pytest.raises(RequestCancelled, match="r was cancelled"):
        read(delivery.stream)
    assert ends.ended == ["r"]
    delivery.take(output(completion("late", (9,))))  # of a step that had begun
    assert ends.ended == ["r"]


def test_an_error_inside_vllm_affects_one_request() -> None:
    delivery = Ends().delivery()
    delivery.take(output(completion("", (), reason="error"), finished=True))
    with pytest.raises(SageInferError, match="ended request r with 'error'"):
        read(delivery.stream)


def test_a_dead_engine_ends_the_stream() -> None:
    ends = Ends()
    delivery = ends.delivery()
    delivery.take(RuntimeError("EngineCore encountered an issue.\nSee stack trace"))
    with pytest.raises(
        EngineDead, match=r"stopped while the request ran \(RuntimeError: EngineCore encountered an"
    ):
        read(delivery.stream)
    assert ends.ended == ["r"]


def test_an_error_of_vllm_waits_for_its_cause() -> None:
    ends, errors = Ends(), list[EngineDead]()
    delivery = ends.delivery()
    delivery.failed = lambda _, error: errors.append(error)
    delivery.take(RuntimeError("EngineCore encountered an issue."))
    assert not delivery.has_ended()
    delivery.fail(EngineDead("EngineCore was killed by SIGKILL"))
    delivery.fail(*errors)
    with pytest.raises(EngineDead, match="SIGKILL"):
        read(delivery.stream)
    assert ends.ended == ["r"]


def test_leaving_early_aborts_in_the_engine_once() -> None:
    ends = Ends()
    delivery = ends.delivery()
    delivery.stream.cancel()
    delivery.stream.cancel()
    assert ends.cancelled == ["r"]


def test_logprobs_keep_their_order() -> None:
    def entry(rank: int, logprob: float, text: str | None) -> SimpleNamespace:
        return SimpleNamespace(rank=rank, logprob=logprob, decoded_token=text)

    # The chosen token comes first in vLLM's mapping; here it is the fifth most likely, so no alternative.
    first = {7: entry(5, -3.0, "g"), 1: entry(1, -0.1, "a"), 2: entry(2, -2.0, None)}
    second = {1: entry(1, -0.2, "a"), 3: entry(2, -1.9, "c")}
    delivery = Ends().delivery(logprobs=2)
    delivery.take(output(completion("ga", (7, 1), logprobs=[first, second])))
    delivery.take(output(completion("", (), reason="stop", logprobs=[]), finished=True))
    deltas = read(delivery.stream)
    assert deltas[0].logprobs is not None
    chosen, next_one = deltas[0].logprobs
    assert (chosen.token_id, chosen.text, chosen.logprob) == (7, "g", -3.0)
    assert chosen.alternatives == ((1, "a", -0.1), (2, "", -2.0))
    assert next_one.alternatives == ((1, "a", -0.2), (3, "c", -1.9))
    assert deltas[1].logprobs == ()


@pytest.mark.parametrize(("stop_reason", "is_end"), [(None, True), (1, True), ("a", False)])
def test_a_token_that_ends_the_output_is_marked(stop_reason: int | str | None, is_end: bool) -> None:
    entries = {1: SimpleNamespace(rank=1, logprob=-0.1, decoded_token="a")}
    delivery = Ends().delivery(logprobs=0)
    ended = completion("", (1,), reason="stop", logprobs=[entries])
    ended.stop_reason = stop_reason
    delivery.take(output(ended, finished=True))
    (delta,) = read(delivery.stream)
    assert [one.is_end for one in delta.logprobs or ()] == [is_end]
