"""Values that are accepted without a closer look follow the rules of their fields."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.checks import Integer, Number
from sage_infer.schemas import Timing, Usage
from sage_infer.schemas.base import all_schemas

NUMBERS = [-(2**70), -3, -2, -1, 0, 1, 2, 9, 10, 100, 101, 2**70]
FRACTIONS = [-2.1, -2.0, -0.5, -0.0, 0.0, 1e-300, 0.5, 1.0, 1.5, 100.0, 100.1, 1e300]
VALUES = [None, True, False, "", "3", *NUMBERS, *FRACTIONS, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize(
    "check",
    [
        Integer(),
        Integer(ge=0),
        Integer(ge=1, le=9),
        Number(),
        Number(ge=0),
        Number(ge=0, le=100),
        Number(gt=0, le=1),
        Number(ge=-2, le=2),
        Number(ge=0, lt=1),
    ],
)
def test_a_value_that_fits_has_no_problems(check: Any) -> None:
    for value in VALUES:
        if check.fits(value):
            assert list(check.problems(value, "$")) == [], value


def test_usual_values_fit() -> None:
    assert Integer(ge=0).fits(3)
    assert Number(ge=0).fits(0.5)
    assert not Number(ge=0).fits(float("nan"))
    assert not Number(ge=0).fits(float("inf"))
    assert not Integer(ge=0).fits(True)


@pytest.mark.parametrize("name", all_schemas())
def test_defaults_follow_the_rules_of_their_fields(name: str) -> None:
    """A field at its default is not checked."""
    for attribute in attrs.fields(all_schemas()[name]):
        check: Any = attribute.validator
        if (
            check is not None
            and not isinstance(attribute.default, attrs.Factory)
            and attribute.default is not attrs.NOTHING
        ):  # type: ignore[arg-type]
            assert list(check.problems(attribute.default, f"$.{attribute.name}")) == []


@pytest.mark.parametrize("value", [-1, True, "3", 1.5, None])
def test_other_values_are_still_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="prompt_tokens"):
        Usage(prompt_tokens=value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "3"])
def test_other_durations_are_still_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="total_s"):
        Timing(queue_s=0.0, ttft_s=0.0, total_s=value)
