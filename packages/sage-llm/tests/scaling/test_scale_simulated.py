"""`sage llm simulate --autoscale`: a step, bursts and a night, beside a fixed number of instances."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sage_infer.cli.main import main

ENGINE = ["--step", "base_s=0.02,per_prompt=0.0005", "--start-time", "10"]  # 2,000 prompt tokens per second
QUICK = "0:6,down_s=100,idle_s=40,up_s=2,smooth_s=3"


@pytest.fixture
def simulate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, str]]:
    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["sage", "llm", "simulate", *arguments])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr()

    return run


def trace(folder: Path, rate: Callable[[float], float], seconds: float) -> str:
    """A trace with this rate of requests, of 1,000 prompt tokens each on average."""
    numbers, at, file = random.Random(3), 0.0, folder / "trace.jsonl"
    rows = []
    while at < seconds:
        if rate(at):
            rows.append(
                {"timestamp": round(at * 1000), "input_length": numbers.randint(500, 1500), "output_length": 50,
                 "hash_ids": []}
            )  # fmt: skip
        at += numbers.expovariate(rate(at)) if rate(at) else 1.0
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


DAYS: dict[str, tuple[Callable[[float], float], int]] = {
    "step": (lambda at: 1.0 if at < 200 else 5.0, 8),
    "burst": (lambda at: 4.0 if at % 200 > 140 else 1.0, 10),
    "night": (lambda at: 0.0 if 200 < at < 400 else 2.0, 10),
}


@pytest.mark.parametrize("day", DAYS)
def test_the_number_follows_the_load(simulate: Any, tmp_path: Path, day: str) -> None:
    rate, most_changes = DAYS[day]
    file = trace(tmp_path, rate, 600.0)
    command = (file, "--compare", "kv-cost", "-n", "6", "--autoscale", QUICK, *ENGINE, "--json")
    found = json.loads(simulate(*command)[0])
    fixed, scaled = found["results"]
    assert (fixed["settings"]["autoscale"], scaled["settings"]["autoscale"]) == ("off", "0:6")
    assert scaled["finished"] == scaled["requests"] == fixed["finished"], "a drain loses nothing"
    assert scaled["slo_ready"] >= 0.95
    assert scaled["instance_hours"] < 0.75 * fixed["instance_hours"]
    changes = scaled["changes"]
    assert 0 < len(changes) <= most_changes
    assert (changes[0]["instances"], changes[0]["reason"]) == (1, "a request waits and no replica runs")
    assert changes[-1]["instances"] == 0
    for before, after in itertools.pairwise(changes):
        assert after["instances"] != before["instances"]
        if after["instances"] < before["instances"]:
            assert after["at"] - before["at"] >= 40, "not after less than the time of the hysteresis"
    if day == "night":
        assert [change["instances"] for change in changes].count(0) == 2
    again = json.loads(simulate(*command)[0])["results"][1]
    for result in (scaled, again):
        del result["cpu_s"], result["series"]["rss_mib"]
    assert again == scaled


def test_the_table_and_what_is_refused(simulate: Any) -> None:
    sessions = "sessions:requests=60,turns=2,rate=2,block=64"
    out, _ = simulate(sessions, "-n", "2", "--compare", "kv-cost", "--autoscale", "1:2", "--routers", "2")
    assert out.splitlines()[1].split()[-4:] == ["SLO", "ready", "HOURS", "CHANGES"]
    assert [line.split("  ")[0] for line in out.splitlines()[2:4]] == [
        "kv-cost, autoscale off",
        "kv-cost, autoscale 1:2",
    ]
    for arguments, wanted in (
        (["--autoscale", "1:2", "--crash", "0@1"], "--autoscale cannot be combined with --crash"),
        (["--autoscale", "2:1"], "above the maximum"),
        (["--autoscale", "1:2", "--start-time", "0"], "--start-time must be above 0"),
    ):
        assert wanted in simulate(sessions, *arguments)[1]
