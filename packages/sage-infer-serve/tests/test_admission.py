"""Requests are accepted while their responses can begin in time, at any rate of the engine."""

from __future__ import annotations

import heapq
import random

import pytest
from gateway_served import Served
from sage_infer_serve.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_at_the_start() -> None:
    clock = Clock()
    admission = Admission(clock)
    for request in range(200):
        admission.accepted(request)
    assert admission.wait_s() == 0
    clock.now += 1
    assert admission.wait_s() == 0


def test_the_wait_is_the_queue_over_the_rate() -> None:
    clock = Clock()
    admission = Admission(clock)
    for request in range(50):
        admission.accepted(request)
    for request in range(10):
        clock.now += 0.5
        admission.answered(request)
        admission.answered(request)
    assert admission.wait_s() == pytest.approx(41 * 5 / 10.5)
    for request in range(10, 45):
        admission.left(request)
    assert admission.wait_s() == 0, "a few may always wait"


def test_an_engine_without_responses() -> None:
    clock = Clock()
    admission = Admission(clock)
    for request in range(20):
        admission.accepted(request)
    clock.now += 60
    assert admission.wait_s() > 60


@pytest.mark.parametrize("rate", [0.5, 2.0, 20.0, 200.0])
def test_overload_of_twenty_times(rate: float) -> None:
    """Poisson arrivals at twenty times what is served: those accepted wait about the target at most, and the engine
    never runs dry."""
    draw = random.Random(7)
    clock = Clock()
    admission = Admission(clock)
    target, horizon = 30.0, 300.0
    events: list[tuple[float, int, str]] = [(clock.now, 0, "arrival")]
    queue: list[tuple[float, int]] = []
    waits: list[float] = []
    refused = idle = 0
    count, busy = 0, False
    while events:
        clock.now, number, kind = heapq.heappop(events)
        if clock.now > 100 + horizon:
            break
        if kind == "arrival":
            count += 1
            heapq.heappush(events, (clock.now + draw.expovariate(20 * rate), count, "arrival"))
            if len(queue) < 512 and admission.wait_s() <= target:
                admission.accepted(number)
                queue.append((clock.now, number))
            else:
                refused += 1
        else:
            busy = False
            admission.answered(number)
            admission.left(number)
        if not busy and queue:
            came, first = queue.pop(0)
            took = draw.uniform(0.5, 1.5) / rate
            waits.append(clock.now + took - came)
            busy = True
            heapq.heappush(events, (clock.now + took, first, "answer"))
        elif not busy and clock.now > 110:
            idle += 1
    assert refused > 0.8 * count
    assert idle < 0.02 * len(waits) + 2
    late = sum(wait > 60 for wait in waits)
    assert late <= max(1, 0.01 * len(waits)), f"{late} of {len(waits)} waited longer than a minute"


def test_refusals_say_when_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.gateway.service.admission, "wait_s", lambda: 41.2)
    answer = served.chat()
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "42"
    assert served.get("/health").status == 200
    monkeypatch.setattr(served.gateway.service.admission, "wait_s", lambda: 29.0)
    assert served.chat().status == 200


def test_open_requests_are_counted_out(served: Served) -> None:
    for _ in range(3):
        assert served.chat().status == 200
        assert served.chat(stream=True).status == 200
        assert served.post("/v1/embeddings", {"model": "vectors", "input": "a"}).status == 200
        assert served.chat(model="nobody").status == 404
    assert not served.gateway.service.admission._waiting
