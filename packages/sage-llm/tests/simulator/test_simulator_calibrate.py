"""Calibration by results of ``sage infer bench``."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_infer.errors import InvalidRequest
from sage_llm.simulator.calibrate import calibrate, contention, nonnegative_least_squares
from sage_llm.types import Step

REAL = Step(0.02, 4e-4, 3e-3, 1e-6)
CHUNK = 256


def sample(
    due: float, ttft: float, tpot: float, prompt: int, output: int, cached: int | None = None
) -> dict[str, Any]:
    e2e = ttft + tpot * (output - 1)
    return {
        "due_s": due, "ttft_s": ttft, "e2e_s": e2e, "prompt_tokens": prompt, "cached_tokens": cached,
        "output_tokens": output, "error": None,
    }  # fmt: skip


def bench(folder: Path, name: str, samples: list[dict[str, Any]]) -> Path:
    file = folder / name
    file.write_text(json.dumps({"tool": "sage-infer-serve", "settings": {}, "samples": samples}), "utf-8")
    return file


def alone(noise: float = 0.0, overhead: float = 0.0, cached: int | None = None) -> list[dict[str, Any]]:
    """Requests one after another."""
    rng, found = random.Random(1), []
    for number in range(24):
        prompt, output = (100, 40) if number % 2 else (700, 90)
        computed = prompt - (cached or 0)
        ttft = overhead + REAL.predict(computed, 0, 0) + (-(-computed // CHUNK) - 1) * REAL.base_s
        tpot = REAL.predict(0, 1, prompt + output // 2)
        found.append(
            sample(
                number * 100.0,
                ttft * (1 + noise * rng.uniform(-1, 1)),
                tpot * (1 + noise * rng.uniform(-1, 1)),
                prompt,
                output,
                cached,
            )
        )
    return found


def together(streams: int) -> list[dict[str, Any]]:
    """Rounds of streams that begin and end simultaneously."""
    found = []
    for number in range(6):
        prompt, output = 50, 60
        tpot = REAL.predict(0, streams, streams * (prompt + output // 2))
        found += [sample(number * 100.0, 1.0, tpot, prompt, output) for _ in range(streams)]
    return found


def test_the_coefficients_are_found(tmp_path: Path) -> None:
    files = [bench(tmp_path, "1.json", alone()), bench(tmp_path, "8.json", together(8))]
    found = calibrate(files, CHUNK)
    assert found.step.base_s == pytest.approx(REAL.base_s, rel=0.01)
    assert found.step.per_prompt == pytest.approx(REAL.per_prompt, rel=0.01)
    assert found.step.per_sequence == pytest.approx(REAL.per_sequence, rel=0.02)
    assert found.step.per_context == pytest.approx(REAL.per_context, rel=0.2)
    assert found.ttft_error is not None
    assert found.ttft_error < 0.01
    assert found.tpot_error is not None
    assert found.tpot_error < 0.01
    assert found.held_out == (found.fitted + found.held_out) // 3
    assert "on 32 of 96 equations that were held out" in found.lines()[1]


def test_time_outside_of_the_engine_and_cached_tokens_are_told_apart(tmp_path: Path) -> None:
    samples = alone(overhead=0.03, cached=64)
    files = [bench(tmp_path, "1.json", samples), bench(tmp_path, "8.json", together(8))]
    found = calibrate(files, CHUNK)
    assert found.overhead_s == pytest.approx(0.03, rel=0.01)
    assert found.step.per_prompt == pytest.approx(REAL.per_prompt, rel=0.01)
    assert "30 ms per request" in found.lines()[0]
    for one in samples:
        del one["cached_tokens"]  # a result of an older version: every token counts as computed
    files[0] = bench(tmp_path, "1.json", samples)
    assert calibrate(files, CHUNK).overhead_s < 0.03


def test_contention_is_found_in_simultaneous_runs(tmp_path: Path) -> None:
    own = calibrate([bench(tmp_path, "1.json", alone()), bench(tmp_path, "8.json", together(8))], CHUNK)
    slower = alone()
    for one in slower:
        one["ttft_s"], one["e2e_s"] = one["ttft_s"] * 2.2, one["e2e_s"] * 2.2
    shared = [bench(tmp_path, f"shared{n}.json", slower) for n in range(3)]
    assert contention(shared, own, CHUNK, 3) == pytest.approx(0.6, rel=0.03)
    assert contention([bench(tmp_path, "same.json", alone())], own, CHUNK, 2) == pytest.approx(0.0, abs=0.02)
    with pytest.raises(InvalidRequest, match="run more requests, streamed"):
        contention([bench(tmp_path, "none.json", [])], own, CHUNK, 2)


def test_noise_shows_in_the_check(tmp_path: Path) -> None:
    found = calibrate([bench(tmp_path, "1.json", alone(noise=0.2))], CHUNK)
    assert found.step.per_prompt == pytest.approx(REAL.per_prompt, rel=0.3)
    assert found.ttft_error is not None
    assert 0.01 < found.ttft_error < 0.3
    assert found.unknown  # one stream at a time does not tell the step from its sequence
    assert "measure with several concurrencies" in found.lines()[-1]


@any_speed(200)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=4, max_size=12),
    st.data(),
)
def test_no_other_point_is_better(rows: list[list[int]], data: st.DataObject) -> None:
    right = data.draw(st.lists(st.integers(-20, 50), min_size=len(rows), max_size=len(rows)))

    def squares(x: list[float]) -> float:
        return sum(
            (sum(a * b for a, b in zip(row, x, strict=True)) - r) ** 2
            for row, r in zip(rows, right, strict=True)
        )

    found = nonnegative_least_squares(rows, right)
    assert min(found) >= 0
    best = squares(found)
    for place in range(3):
        for change in (-0.01, 0.01, -0.5, 0.5):
            other = list(found)
            other[place] = max(other[place] + change, 0.0)
            assert squares(other) >= best - 1e-6 * (1 + best)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no samples; expected the result of `sage infer bench --json"),
        ('{"samples": [{"error": null}]}', "sample 0 is not one of `sage infer bench`"),
        ('{"samples": []}', "0 equations are too few"),
        ('{"samples": [], "settings": {"stream": false}}', "--no-stream; times to first token need --stream"),
        ('{"samples": [], "settings": {"endpoint": "embeddings"}}', "measured embeddings"),
        ('{"samples": [{"error": "HTTP 500"}]}', "all 1 requests failed: HTTP 500"),
        ('{"samples": [{"error": null, "ttft_s": null}]}', "has no times to first token"),
        (json.dumps({"samples": [sample(0.0, 0.1, 0.1, 0, 9)]}), "does not count them in `usage`"),
        (
            json.dumps({"samples": [sample(n * 9.0, 0.1, 0.1, 50, 9) for n in range(9)]}),
            "have 50 to 50 tokens",
        ),
        (
            json.dumps({"samples": [sample(0.0, 0.1 + n / 10, 0.1, 50 + 99 * n, 9) for n in range(9)]}),
            "no prompt was computed while no other request was served; add a run with --concurrency 1",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(text, "utf-8")
    with pytest.raises(InvalidRequest, match=message):
        calibrate([tmp_path / "bench.json"], CHUNK)
    with pytest.raises(InvalidRequest, match="cannot read"):
        calibrate([tmp_path / "absent.json"], CHUNK)
