"""Requests are accepted while their responses can begin in time, at any rate of the engine."""

from __future__ import annotations

import random

import attrs
import pytest
from gateway_served import Served
from sage_infer.errors import (
    BackendUnavailable,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
)
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
        admission.accepted(request, 100)
    assert admission.wait_s() == 0
    clock.now += 1
    assert admission.wait_s() == 0


def test_the_wait_is_the_work_over_the_rate() -> None:
    clock = Clock()
    admission = Admission(clock)
    for request in range(50):
        admission.accepted(request, 100)
    for request in range(10):
        clock.now += 0.5
        admission.worked(60)
        admission.answered(request)
        admission.answered(request)
    assert admission.wait_s() == pytest.approx(40 * 100 * 5 / 600)
    admission.ended(0, 20)
    assert admission.wait_s() == pytest.approx(40 * 60 * 5 / 600), "answers are shorter than their limits"
    admission.accepted("exact", 300, at_most=False)
    assert admission.wait_s() == pytest.approx((40 * 60 + 300) * 5 / 600)
    for request in range(10, 45):
        admission.left(request)
    assert admission.wait_s() == 0, "a few may always wait"


def test_answers_that_reach_their_limits() -> None:
    """Their mean is the mean of the limits, not that of the lower of limit and mean."""
    draw = random.Random(3)
    clock = Clock()
    admission = Admission(clock)
    limits = [draw.randint(16, 96) for _ in range(200)]
    for number, limit in enumerate(limits):
        admission.accepted(number, limit)
        admission.answered(number)
        admission.ended(number, limit)
        admission.left(number)
    for number, limit in enumerate(limits):
        admission.accepted(number, limit)
    for _ in range(100):
        clock.now += 0.1
        admission.worked(10)
    assert admission.wait_s() == pytest.approx(sum(limits) / 100, rel=0.1)


def test_a_new_queue_is_judged_by_the_rate_of_the_last_one() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(20):
        admission.accepted(number, 50)
    for _ in range(120):
        clock.now += 0.1
        admission.worked(10)
        admission.wait_s()
    for number in range(20):
        admission.left(number)
    clock.now += 1000
    for number in range(40):
        admission.accepted(f"later {number}", 50)
    # It may be served faster, as other models may have been busy during the last one.
    assert admission.wait_s() == pytest.approx(40 * 50 / 100 / 4, rel=0.1)


def test_a_tenant_waits_for_its_own_work_and_as_much_of_others() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(30):
        admission.accepted(number, 1000, at_most=False, tenant="large")
    admission.accepted("a", 100, at_most=False, tenant="small")
    for _ in range(100):
        clock.now += 0.1
        admission.worked(10)
    assert admission.wait_s("large") == pytest.approx(301, rel=0.02)
    assert admission.wait_s("small") == pytest.approx(2, rel=0.02)
    assert admission.wait_s("new") == 0


def test_a_model_that_answers_nobody() -> None:
    clock = Clock()
    admission = Admission(clock)
    for request in range(20):
        admission.accepted(request, 100)
    clock.now += 60
    assert admission.wait_s() == pytest.approx(20 / 8 * 20)  # of the last 20 s


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("rate", [0.5, 2.0, 6.0])
def test_overload_of_twenty_times(rate: float, batch: int) -> None:
    """Poisson arrivals at twenty times what a batch of streams serves, in steps of 50 ms: those accepted wait about the
    target at most, are told the right wait, and the engine never runs dry."""
    draw = random.Random(7)
    clock = Clock()
    admission = Admission(clock)
    target, horizon, step_s = 30.0, 300.0, 0.05
    mean = 40.0
    per_step = rate * mean * step_s  # tokens of all streams together
    next_arrival, count = clock.now, 0
    queue: list[tuple[float, int, float]] = []
    running: list[list[float]] = []  # request, tokens left, tokens
    waits: list[float] = []
    told: list[float] = []
    refused = idle = 0
    while clock.now < 100 + horizon:
        while next_arrival <= clock.now:
            count += 1
            wait = admission.wait_s()
            if len(queue) < 512 and wait <= target:
                admission.accepted(count, 100)
                queue.append((clock.now, count, draw.uniform(0.5, 1.5) * mean))
                told.append(wait)
            else:
                refused += 1
            next_arrival += draw.expovariate(20 * rate)
        while queue and len(running) < batch:
            came, number, tokens = queue.pop(0)
            running.append([number, tokens, tokens])
            waits.append(clock.now - came)
            admission.answered(number)
        clock.now += step_s
        idle += not running
        for stream in running:
            stream[1] -= per_step / len(running)
        if running:
            admission.worked(per_step)
        for stream in [s for s in running if s[1] <= 0]:
            running.remove(stream)
            admission.ended(stream[0], stream[2])
            admission.left(stream[0])
    assert refused > 0.8 * count
    assert idle < 20
    late = sum(wait > 55 for wait in waits)
    assert late <= max(1, 0.01 * len(waits)), f"{late} of {len(waits)} waited longer than 55 s"
    late_on = [pair for pair in zip(told, waits, strict=False) if pair[0] > 15]
    assert len(late_on) > 20
    assert sum(wait / 2 <= expected <= 2 * wait for expected, wait in late_on) > 0.9 * len(late_on)


def test_refusals_say_when_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "wait_s", lambda *_: 41.2)
    answer = served.chat()
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "42"
    assert served.get("/health").status == 200
    monkeypatch.setattr(Admission, "wait_s", lambda *_: 29.0)
    assert served.chat().status == 200


def test_requests_are_refused_before_they_are_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.chat().status == 200
    assert served.post("/v1/embeddings", {"model": "vectors", "input": "a"}).status == 200
    broken = {"path": "/v1/chat/completions", "body": b"{"}
    assert served.ask("POST", **broken).status == 400
    queue = served.gateway.service._admissions["echo"]
    monkeypatch.setattr(queue, "wait_s", lambda _: 41.2)
    answer = served.ask("POST", **broken)
    assert (answer.status, answer.headers["retry-after"]) == (429, "42")
    assert served.post("/v1/completions", {"model": "echo", "prompt": "a"}).status == 429
    assert served.post("/v1/embeddings", {"model": "vectors", "input": "a"}).status == 200
    assert served.post("/tokenize", {"model": "echo", "prompt": "a"}).status != 429
    assert served.get("/v1/models").status == 200


def test_a_queue_of_one_model_does_not_refuse_requests_for_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.chat().status == 200
    monkeypatch.setattr(served.gateway.service._admissions["echo"], "wait_s", lambda _: 41.2)
    models = served.backend.list_models()
    other = attrs.evolve(next(m for m in models if m.model_id == "echo"), model_id="other")
    monkeypatch.setattr(served.backend, "list_models", lambda: [*models, other])
    assert served.chat().status == 429
    assert served.ask("POST", "/v1/chat/completions", b"{").status == 400, "it could be for the other model"


def test_a_full_server_says_when_an_answer_could_begin(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.chat().status == 200
    service = served.gateway.service
    monkeypatch.setattr(service._admissions["echo"], "wait_s", lambda _: 21.5)
    monkeypatch.setattr(service, "settings", attrs.evolve(service.settings, max_open_requests=1))
    monkeypatch.setattr(service, "open", {object()})
    answer = served.chat()
    assert (answer.status, answer.headers["retry-after"]) == (429, "22")


def test_open_requests_are_counted_out(served: Served) -> None:
    for _ in range(3):
        assert served.chat().status == 200
        assert served.chat(stream=True).status == 200
        assert served.post("/v1/embeddings", {"model": "vectors", "input": "a"}).status == 200
        assert served.chat(model="nobody").status == 404
    admissions = served.gateway.service._admissions
    assert len(admissions) == 2
    assert not any(admission._waiting for admission in admissions.values())


def test_a_queue_in_which_nothing_was_done_says_nothing_of_the_next_one() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(20):
        admission.accepted(number, 50)
    clock.now += 30
    assert admission.wait_s() == pytest.approx(20 / 8 * 20)  # now
    for number in range(20):
        admission.left(number)
    for number in range(20):
        admission.accepted(f"later {number}", 50)
    assert admission.wait_s() == 0


def test_a_model_that_stops_answering_is_not_judged_by_its_last_queue() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(20):
        admission.accepted(number, 50)
    for _ in range(120):
        clock.now += 0.1
        admission.worked(10)
        admission.wait_s()
    for number in range(20):
        admission.left(number)
    for number in range(20):
        admission.accepted(f"later {number}", 50)
    clock.now += 60
    assert admission.wait_s() == pytest.approx(20 / 8 * 20)


def test_a_model_that_fails_is_not_judged_by_its_queue() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(500):
        admission.accepted(number, 50)
    clock.now += 15
    assert admission.wait_s() > 900
    for number in range(8):
        admission.failed(number)
    assert admission.wait_s() == 0
    clock.now += 15
    admission.answered(8)
    admission.worked(1000)
    admission.failed(9)
    assert admission.wait_s() == pytest.approx(490 * 50 / (1050 / 15)), "it answers again"


def test_work_of_failed_requests_is_done() -> None:
    clock = Clock()
    admission = Admission(clock)
    for number in range(100):
        admission.accepted(number, 50)
    for number in range(0, 40, 2):
        clock.now += 0.5
        admission.worked(50)
        admission.answered(number)
        admission.failed(number + 1)
        admission.failed(number)  # its work was counted already
    assert admission.wait_s() == pytest.approx(60 * 50 / 200)


def test_requests_that_the_model_fails_to_answer_are_told_from_wrong_ones(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[object] = []
    monkeypatch.setattr(Admission, "failed", lambda _, request: faults.append(request))
    for error in (
        EngineDead("gone"), BackendUnavailable("gone"), ValueError("a fault of the backend"), InvalidRequest("wrong"),
        Overloaded("full", retry_after=1.0), OutOfMemory("too long"), RequestCancelled("late", by="deadline"),
    ):  # fmt: skip
        served.backend.refuse = error
        assert served.chat().status != 200
    served.backend.refuse = None
    assert served.chat(model="vectors").status == 404
    assert len(faults) == 3


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_the_queue_of_a_model_that_cannot_answer_refuses_nothing(
    served: Served, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.chat().status == 200
    queue = served.gateway.service._admissions["echo"]
    clock = Clock()
    monkeypatch.setattr(queue, "_clock", clock)
    for number in range(400):
        queue.accepted(number, 50)
    clock.now += 15
    assert served.chat().status == 429
    assert served.ask("POST", "/v1/chat/completions", b"{").status == 429
    served.backend.state = state
    clock.now += 1
    assert served.ask("POST", "/v1/chat/completions", b"{").status == 400
    assert served.chat().status == 200
    served.backend.state = "ready"
    assert served.chat().status == 200, "nothing is known of the time since then"
