"""Which instances have no room is known without asking each of them for each request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import Overloaded
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor
from sage_llm.manager.live_instance import Attempt, LiveInstance
from sage_llm.manager.placing import Placement

INSTANCES, MODEL = 2, "toy"
NEXT: dict[str, Any] = {"ready": "suspect", "suspect": "lost", "lost": "probation", "probation": "ready"}


def instance(number: int, kind: str = "general", make: type[LiveInstance] = LiveInstance) -> LiveInstance:
    capability = CapabilityDescriptor(
        backend_name="toy", instance_type=kind, hardware_backend="cpu", max_batch_size=1, max_sequence_length=64,
        supported_precisions=("fp32",),
    )  # fmt: skip
    descriptor = InstanceDescriptor(
        instance_id=f"toy/{number}", generation=1, model_ids=(MODEL,), capability=capability
    )
    return make(number, SimpleNamespace(descriptor=descriptor, backend=None), MODEL)  # type: ignore[arg-type]  # what the test needs of a connection


def full(placement: Placement, now: float) -> set[str] | None:
    found = placement.full(MODEL, now)
    return None if found is None else {one.instance_id for one in found}


def asked(placement: Placement, now: float) -> set[str] | None:
    """The same, by asking every instance."""
    instances = placement.instances(MODEL)
    found = {one.instance_id for one in instances if not one.has_room(now)}
    return None if len(found) == len(instances) else found


class Life:
    """What can happen to an instance, by name."""

    def __init__(self, placement: Placement) -> None:
        self.placement, self.now, self.sent = placement, 100.0, 0

    def send(self, one: LiveInstance) -> None:
        self.sent += 1
        one.breaker.sent(self.now)
        one.add(Attempt(1, one, str(self.sent), 8))

    def end(self, one: LiveInstance) -> None:
        if one.attempts:
            one.attempts.popitem()
            one.is_isolated = False
            one.left()

    def produce(self, one: LiveInstance) -> None:
        one.produced()

    def ask(self, one: LiveInstance) -> None:
        call: Any = object()
        one.add_call(call)

    def answer(self, one: LiveInstance) -> None:
        if one.calls:
            one.calls.pop()
            one.left()

    def refuse(self, one: LiveInstance) -> None:
        one.refused(Overloaded("full", retry_after=1.0), self.now)

    def fail(self, one: LiveInstance) -> None:
        for _ in range(3):
            one.failed(self.now)

    def isolate(self, one: LiveInstance) -> None:
        one.isolate()

    def move(self, one: LiveInstance) -> None:
        if one.word in NEXT:
            one.move(NEXT[one.word])

    def recover(self, one: LiveInstance) -> None:
        if one.word == "suspect":
            one.move("ready")

    def drain(self, one: LiveInstance) -> None:
        if one.word == "ready":
            one.move("draining")

    def replace(self, one: LiveInstance) -> None:
        """It ends, and another one takes its place in snapshots."""
        self.placement.remove(one)
        one.move("dead")
        one.failed(self.now)  # it may still be heard of
        self.placement.add(instance(100 + self.sent))
        self.sent += 1

    def wait(self, one: LiveInstance) -> None:
        self.now += 0.7


NAMES = sorted(name for name in vars(Life) if not name.startswith("_")) + 6 * ["send"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, INSTANCES - 1)), max_size=60))
def test_as_if_every_instance_was_asked(events: list[tuple[str, int]]) -> None:
    placement = Placement()
    for number in range(INSTANCES):
        placement.add(instance(number))
    life = Life(placement)
    for name, number in events:
        getattr(life, name)(placement.instances(MODEL)[number])
        assert full(placement, life.now) == asked(placement, life.now), name


def test_instances_with_room_are_not_asked() -> None:
    questions: list[float] = []

    class Counting(LiveInstance):
        def has_room(self, now: float) -> bool:
            questions.append(now)
            return super().has_room(now)

    placement = Placement()
    for number in range(INSTANCES):
        placement.add(instance(number, make=Counting))
    assert full(placement, 0.0) == set()
    questions.clear()
    assert full(placement, 1.0) == set()
    assert not questions
    one = placement.instances(MODEL)[0]
    for number in range(3):  # its batch, and two that wait in it
        one.add(Attempt(1, one, str(number), 8))
    assert full(placement, 2.0) == {one.instance_id}
    assert questions == [2.0]


def test_no_instance_has_room() -> None:
    placement = Placement()
    assert placement.full(MODEL, 0.0) is None
    placement.add(instance(0))
    placement.instances(MODEL)[0].move("draining")
    assert placement.full(MODEL, 0.0) is None


def test_an_encoding_instance_is_always_asked() -> None:
    """Its room depends on the batches that it forms."""

    async def main() -> None:
        placement = Placement()
        one = instance(0, "embedding")
        placement.add(one)
        assert placement.full(MODEL, 0.0) == []
        for _ in range(3):
            one.calls.add(asyncio.get_running_loop().create_future())
        assert placement.full(MODEL, 0.0) is None
        one.forming["a"] = object()
        assert placement.full(MODEL, 0.0) == []

    asyncio.run(main())
