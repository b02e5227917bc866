"""The engine model of a real engine, fitted to runs of ``sage infer bench``.

Each request yields up to two equations in the four coefficients of a step and the time that a request spends outside of
the engine. Without other requests, its time to first token is that time and the steps that compute its prompt. Its
time per output token is that of a mean step with the streams that ran beside it, and with the prompts that were
computed meanwhile. The equations are divided by what was measured, so that relative errors are minimized, with
coefficients of at least 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import attrs
from attrs import frozen
from sage_infer.errors import InvalidRequest

from sage_llm.simulator.bench_file import Sample, read_samples
from sage_llm.types import Step

__all__ = ["Calibration", "calibrate", "contention", "nonnegative_least_squares"]

_HELD_OUT = 3  # every third equation is not fitted
_FEWEST = 9
_DIFFERENT = 1.5  # least ratio of the longest to the shortest prompt
_NAMES = ("base_s", "per_prompt", "per_sequence", "per_context")


class _Equation(NamedTuple):
    kind: Literal["ttft", "tpot"]
    row: tuple[float, float, float, float, float]
    measured: float


@frozen(kw_only=True)
class Calibration:
    """Fitted coefficients and how well they predict equations that were held out.

    Attributes:
        step: the coefficients.
        overhead_s: time from the arrival of a request to its first step: HTTP, tokenization, placement.
        fitted: equations used for the fit.
        held_out: equations used for the check.
        ttft_error: mean relative error of the held-out times to first token; None if there are none.
        tpot_error: mean relative error of the held-out times per output token; None if there are none.
        unknown: coefficients that the runs say nothing about; they are 0.
        contention: by which share each further busy instance of a host lengthens a step; None if not measured.
    """

    step: Step
    overhead_s: float
    fitted: int
    held_out: int
    ttft_error: float | None
    tpot_error: float | None
    unknown: tuple[str, ...]
    contention: float | None = None

    def lines(self) -> list[str]:
        """The calibration for people."""
        step = self.step
        errors = [
            f"{name} {error:.1%}"
            for name, error in (("TTFT", self.ttft_error), ("TPOT", self.tpot_error))
            if error is not None
        ]
        lines = [
            f"calibrated step: {step.base_s * 1e3:.3g} ms + {step.per_prompt * 1e6:.3g} µs per prompt token + "
            f"{step.per_sequence * 1e6:.3g} µs per sequence + {step.per_context * 1e9:.3g} ns per context token; "
            f"{self.overhead_s * 1e3:.3g} ms per request",
            f"mean error on {self.held_out} of {self.fitted + self.held_out} equations that were held out: "
            + ", ".join(errors),
        ]
        if self.contention is not None:
            lines.append(f"each further busy instance of a host lengthens a step by {self.contention:.0%}")
        if self.unknown:
            lines.append(
                f"the runs do not tell {', '.join(self.unknown)}: measure with several concurrencies and prompt lengths"
            )
        return lines


def calibrate(files: Sequence[Path], chunk: int) -> Calibration:
    """Fit the engine model to results of ``sage infer bench --json FILE``.

    Args:
        chunk: tokens per step of the engine.

    Raises:
        InvalidRequest: a file is no result of a streamed run, there are too few requests, no request was served
            alone, or all prompts are about as long.
    """
    equations = [equation for file in files for equation in _equations(read_samples(file), chunk)]
    held = [equation for number, equation in enumerate(equations) if number % _HELD_OUT == _HELD_OUT - 1]
    fitted = [equation for number, equation in enumerate(equations) if number % _HELD_OUT != _HELD_OUT - 1]
    if len(equations) < _FEWEST:
        raise InvalidRequest(
            f"--calibrate: {len(equations)} equations are too few, at least {_FEWEST} are needed; run "
            "`sage infer bench` with more requests, streamed, once with --concurrency 1"
        )
    _check_prompts(equations)
    rows = [tuple(value / one.measured for value in one.row) for one in fitted]
    solution = nonnegative_least_squares(rows, [1.0] * len(rows))
    if solution[1] <= 0:
        raise InvalidRequest(
            "--calibrate: the runs do not tell the time per prompt token; measure two lengths of prompts at "
            "--concurrency 1, such as --input-tokens 50 and --input-tokens 400"
        )
    return Calibration(
        step=Step(*solution[:4]),
        overhead_s=solution[4],
        fitted=len(fitted),
        held_out=len(held),
        ttft_error=_error(held, "ttft", solution),
        tpot_error=_error(held, "tpot", solution),
        unknown=tuple(name for name, value in zip(_NAMES, solution, strict=False) if not value),
    )


def contention(files: Sequence[Path], alone: Calibration, chunk: int, busy: int) -> float:
    """By which share each further busy instance of a host lengthens a step.

    Args:
        files: results of simultaneous runs, one on each of ``busy`` instances of the host.
        alone: calibration from runs on one instance while the others did nothing.
        chunk: tokens per step of the engine.

    Raises:
        InvalidRequest: as ``calibrate`` does.
    """
    step = attrs.astuple(alone.step)
    ratios: list[float] = [
        (one.measured - one.row[4] * alone.overhead_s) / _product(one.row[:4], step)
        for file in files
        for one in _equations(read_samples(file), chunk)
    ]
    if not ratios:
        raise InvalidRequest(
            "--calibrate-shared: no request tells the duration of a step; run more requests, streamed"
        )
    return max(median(ratios) - 1.0, 0.0) / (busy - 1)


def _check_prompts(equations: Sequence[_Equation]) -> None:
    """The time to first token tells the time per prompt token only by prompts of different lengths."""
    prompts = [one.row[1] for one in equations if one.kind == "ttft"]
    if not prompts:
        raise InvalidRequest(
            "--calibrate: no prompt was computed while no other request was served; add a run with --concurrency 1"
        )
    if max(prompts) < _DIFFERENT * min(prompts):
        raise InvalidRequest(
            f"--calibrate: all prompts computed alone have {min(prompts):.0f} to {max(prompts):.0f} tokens; add a run "
            "with --concurrency 1 and another length, such as --input-tokens 50 and --input-tokens 400"
        )


def _error(equations: Sequence[_Equation], kind: str, solution: Sequence[float]) -> float | None:
    errors = [abs(_product(one.row, solution) / one.measured - 1.0) for one in equations if one.kind == kind]
    return sum(errors) / len(errors) if errors else None


def _product(row: Sequence[float], solution: Sequence[float]) -> float:
    return sum(a * x for a, x in zip(row, solution, strict=True))


def _equations(samples: Sequence[Sample], chunk: int) -> list[_Equation]:
    equations = []
    for one in samples:
        others = [
            other for other in samples if other is not one and other.due < one.end and other.end > one.due
        ]
        if all(other.end <= one.due or other.due >= one.first for other in others):
            steps = math.ceil(one.prompt / chunk)
            row = (float(steps), float(one.prompt), 0.0, 0.0, 1.0)
            equations.append(_Equation("ttft", row, one.first - one.due))
        if one.output > 1 and one.end > one.first:
            equations.append(_per_token(one, others))
    return equations


def _per_token(one: Sample, others: Sequence[Sample]) -> _Equation:
    """The equation of a mean step between a request's first and last token."""
    lasted, steps = one.end - one.first, one.output - 1
    sequences, context, prompts = 1.0, one.context + one.output / 2, 0.0
    for other in others:
        share = _overlap(one.first, one.end, other.first, other.end) / lasted
        sequences += share
        context += share * (other.context + other.output / 2)
        computing = _overlap(one.first, one.end, other.due, other.first) / (other.first - other.due)
        prompts += other.prompt * computing
    return _Equation("tpot", (1.0, prompts / steps, sequences, context, 0.0), lasted / steps)


def _overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    return max(min(end, other_end) - max(start, other_start), 0.0)


def nonnegative_least_squares(rows: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return the x ≥ 0 that minimizes |rows·x − right|.

    Each set of unknowns that are not 0 is tried, which is exact, and cheap for five unknowns.
    """
    count = len(rows[0])
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(count)] for i in range(count)]
    moment = [sum(row[i] * b for row, b in zip(rows, right, strict=True)) for i in range(count)]
    best, best_gain = [0.0] * count, 0.0
    for size in range(1, count + 1):
        for free in combinations(range(count), size):
            found = _solved([[gram[i][j] for j in free] for i in free], [moment[i] for i in free])
            if found is None or min(found) < 0:
                continue
            gain = sum(x * moment[i] for i, x in zip(free, found, strict=True))  # by which the squares shrink
            if gain > best_gain * (1 + 1e-12):
                best_gain = gain
                best = [0.0] * count
                for i, x in zip(free, found, strict=True):
                    best[i] = x
    return best


def _solved(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """The solution of a symmetric system by elimination; None if it is singular."""
    size = len(right)
    scale = [math.sqrt(matrix[i][i]) or 1.0 for i in range(size)]
    work: list[list[Any]] = [
        [*(matrix[i][j] / (scale[i] * scale[j]) for j in range(size)), right[i] / scale[i]]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(work[row][i]))
        if abs(work[pivot][i]) < 1e-10:
            return None
        work[i], work[pivot] = work[pivot], work[i]
        for row in range(i + 1, size):
            factor = work[row][i] / work[i][i]
            work[row] = [a - factor * b for a, b in zip(work[row], work[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(work[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (work[i][size] - known) / work[i][i]
    return [x / scale[i] for i, x in enumerate(solution)]
