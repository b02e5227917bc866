"""Prefill rates that policies see: equal instances show one rate, others their own."""

from __future__ import annotations

import random

from sage_llm.speeds import Speeds


def test_instances_of_about_the_same_speed_show_one_rate() -> None:
    speeds, rng = Speeds(2000.0), random.Random(1)
    for slot in range(8):
        speeds.add(slot)
    for count in range(1, 40):
        for slot in range(8):
            speeds.measured(slot, rng.uniform(900, 1100), count)
    shown = {speeds.shown(slot) for slot in range(8)}
    assert len(shown) == 1
    assert 900 < shown.pop() < 1100


def test_slower_instances_show_their_own() -> None:
    speeds = Speeds(2000.0)
    for slot in range(6):
        speeds.add(slot)
    for count in range(1, 10):
        for slot in range(6):
            speeds.measured(slot, 1000.0 if slot < 3 else 400.0, count)
    assert [round(speeds.shown(slot), -2) for slot in range(6)] == [1000.0] * 3 + [400.0] * 3


def test_what_is_not_measured_shows_what_most_others_do() -> None:
    speeds = Speeds(2000.0)
    for slot in range(3):
        speeds.add(slot)
    assert speeds.shown(2) == 2000.0
    speeds.measured(0, 500.0, 1)
    assert speeds.changed == {0, 1, 2}
    assert [speeds.shown(slot) for slot in range(3)] == [500.0] * 3


def test_small_changes_are_not_shown() -> None:
    speeds = Speeds(1000.0)
    speeds.add(0)
    speeds.measured(0, 1050.0, 1)
    assert (speeds.shown(0), speeds.changed) == (1000.0, set())
    speeds.measured(0, 1150.0, 2)
    assert (speeds.shown(0), speeds.changed) == (1150.0, {0})


def test_a_removed_instance_leaves_no_class_behind() -> None:
    speeds = Speeds(1000.0)
    for slot in range(3):
        speeds.add(slot)
        for count in range(1, 7):
            speeds.measured(slot, 100.0 if slot == 2 else 1000.0, count)
    assert speeds.shown(2) == 100.0
    speeds.remove(2)
    speeds.add(2)
    assert speeds.shown(2) == 1000.0
    speeds.remove(9)  # unknown
