"""``sage llm simulate``: what a user sees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sage_infer.cli.main import main

DATA = Path(__file__).resolve().parents[1] / "data"
MOONCAKE = str(DATA / "mooncake_200.jsonl")


class Ran(NamedTuple):
    code: Any
    out: str
    err: str


Simulate = Callable[..., Ran]


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simulate:
    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["sage", "llm", "simulate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ran(ended.value.code, *capsys.readouterr())

    return run


def test_a_comparison_is_a_table(simulate: Simulate) -> None:
    ran = simulate(MOONCAKE, "--instances", "4", "--load", "0.9")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert re.match(
        r"mooncake_200.jsonl: 200 requests, .* 4 instances of 2,000 blocks of 512 tokens, load 0.9", lines[0]
    )
    assert lines[1].split()[:3] == ["POLICY", "TTFT", "mean"]
    assert [line.split()[0] for line in lines[2:5]] == ["round-robin", "least-tokens", "kv-cost"]
    assert "8,000 blocks that knows the future" in lines[5]
    assert "3/3 kv-cost" in ran.err


def test_json_has_every_figure(simulate: Simulate) -> None:
    ran = simulate(
        MOONCAKE, "--compare", "kv-cost:alpha=4,credit_dram=0.5,power-of-two", "--seed", "7", "--json"
    )
    found = json.loads(ran.out)
    assert found["trace"]["requests"] == 200
    assert [result["policy"] for result in found["results"]] == [
        "kv-cost:alpha=4,credit_dram=0.5",
        "power-of-two",
    ]
    for result in found["results"]:
        assert (result["requests"], result["finished"], result["refused"]) == (200, 200, 0)
        assert result["settings"]["seed"] == 7
        assert 0 < result["ttft_s"]["p50"] <= result["ttft_s"]["p90"] <= result["ttft_s"]["max"]
        assert 0 < result["saved"] < result["hit"] + 0.1
        assert len(result["ttft_samples"]) == 101
        series = result["series"]
        assert 0 < max(series["hit"]) <= 1
        assert len(series["hit"]) == len(series["queued_max"]) == len(series["waiting"]) >= 100
        assert all(a <= b for a, b in zip(series["queued_mean"], series["queued_max"], strict=True))
        assert not series["rss_mib"] or len(series["rss_mib"]) == len(series["hit"])
    assert 0 < found["bounds"]["belady"] <= found["bounds"]["unlimited"] < 1


def test_a_sweep_runs_each_value(simulate: Simulate) -> None:
    ran = simulate(
        MOONCAKE, "-n", "4", "--compare", "round-robin,kv-cost", "--sweep", "alpha=1,4", "--sweep", "load=0.5,1"
    )  # fmt: skip
    labels = [re.split(r"  +", line)[0] for line in ran.out.splitlines()[2:-1]]
    assert labels == [
        "round-robin, load 0.5", "round-robin, load 1", "kv-cost:alpha=1, load 0.5", "kv-cost:alpha=1, load 1",
        "kv-cost:alpha=4, load 0.5", "kv-cost:alpha=4, load 1",
    ]  # fmt: skip


def test_a_trace_without_keys_has_no_bounds(simulate: Simulate) -> None:
    ran = simulate(str(DATA / "azure_200.csv"), "--compare", "kv-cost", "--order", "fifo")
    assert (ran.code, "bounds" in ran.out) == (0, False)
    assert " 0.0%" in ran.out


def test_the_engine_is_a_setting(simulate: Simulate) -> None:
    def mean(*arguments: str) -> float:
        found = json.loads(simulate(MOONCAKE, "--compare", "kv-cost", "--json", *arguments).out)
        return float(found["results"][0]["ttft_s"]["mean"])

    usual = mean()
    assert mean("--step", "base_s=0.1") > usual
    assert mean("--step", "per_prompt=1e-5, per_sequence=0") < usual
    assert mean("--chunk", "256") > usual
    assert mean("--slowdown", "1.5") > usual
    assert mean("--overhead", "2") == pytest.approx(usual + 2, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "kvcost"], "no placement policy 'kvcost'; did you mean 'kv-cost'"),
        (["--compare", ","], "--compare names no policy"),
        (["--compare", "kv-cost:beta=1"], "has no parameter 'beta'"),
        (["--sweep", "alpha"], "--sweep must be KEY=VALUE,VALUE"),
        (["--sweep", "beta=1"], "nothing has the parameter 'beta'; parameters: alpha, .*load"),
        (["--sweep", "load=-1"], "--sweep load: '-1' is not a valid value"),
        (["--sweep", "instances=two"], "--sweep instances: 'two' is not a valid value"),
        (["--load", "0"], "--load must be above 0"),
        (
            ["--step", "per_token=1"],
            "--step must be KEY=SECONDS,KEY=SECONDS with the keys base_s, per_prompt",
        ),
        (["--step", "per_prompt=0"], "per_prompt must be above 0"),
    ],
)
def test_what_is_wrong_is_said(simulate: Simulate, arguments: list[str], message: str) -> None:
    ran = simulate(MOONCAKE, *arguments)
    assert ran.code != 0
    assert re.search(message, ran.err)


def test_requests_that_fit_nowhere_are_counted(simulate: Simulate) -> None:
    ran = simulate(MOONCAKE, "--compare", "kv-cost", "--blocks", "20")
    assert re.search(r"kv-cost: \d+ requests do not fit into any instance and were refused", ran.err)


def test_a_page_loads_nothing_and_shows_every_run(simulate: Simulate, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    ran = simulate(
        MOONCAKE, "-n", "4", "--load", "0.9", "--compare", "round-robin,kv-cost", "--html", str(file)
    )
    assert ran.code == 0
    text = file.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=", text)
    assert text.count("<svg ") == 5
    assert text.count("<td>") + text.count("<td><span") > 20
    for name in ("round-robin", "kv-cost"):
        assert text.count(f"<title>{name}</title>") >= 4
    assert "prefers-color-scheme: dark" in text
    # every point lies inside its chart
    for points in re.findall(r'points="([^"]*)"', text):
        for point in points.split():
            x, y = map(float, point.split(","))
            assert 63 <= x <= 549
            assert 11 <= y <= 261


def test_calibration_is_shown_and_used(simulate: Simulate, tmp_path: Path) -> None:
    samples = [
        {"due_s": n * 50.0, "ttft_s": 0.05 + prompt / 1000, "e2e_s": 0.05 + prompt / 1000 + 40 * 0.05,
         "prompt_tokens": prompt, "output_tokens": 41, "error": None}
        for n, prompt in enumerate([100, 400] * 10)
    ]  # fmt: skip
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"samples": samples}), "utf-8")
    ran = simulate(MOONCAKE, "--compare", "kv-cost", "--calibrate", str(bench), "--load", "0.5")
    assert "calibrated step: 50 ms + 1e+03 µs per prompt token" in ran.out
    assert "equations that were held out" in ran.out
    found = json.loads(
        simulate(MOONCAKE, "--compare", "kv-cost", "--calibrate", str(bench), "--load", "0.5", "--json").out
    )
    assert found["calibration"]["step"]["per_prompt"] == pytest.approx(0.001, rel=0.01)
    assert found["results"][0]["ttft_s"]["p50"] > 5  # prompts of thousands of tokens at 1,000 tokens/s


def test_instances_that_share_a_host_are_calibrated(simulate: Simulate, tmp_path: Path) -> None:
    def bench(name: str, factor: float) -> str:
        samples = [
            {"due_s": n * 50.0, "ttft_s": factor * (0.05 + prompt / 1000), "prompt_tokens": prompt, "output_tokens": 41,
             "e2e_s": factor * (0.05 + prompt / 1000 + 40 * 0.05), "error": None}
            for n, prompt in enumerate([100, 400] * 10)
        ]  # fmt: skip
        file = tmp_path / name
        file.write_text(json.dumps({"samples": samples}), "utf-8")
        return str(file)

    fixed = (
        "-n",
        "2",
        "--compare",
        "kv-cost",
        "--calibrate",
        bench("alone.json", 1.0),
        "--load",
        "0.5",
        "--json",
    )
    own = json.loads(simulate(MOONCAKE, *fixed).out)
    shared = ("--calibrate-shared", bench("shared.json", 1.9), "--per-host", "2")
    found = json.loads(simulate(MOONCAKE, *fixed, *shared).out)
    assert own["calibration"]["contention"] is None
    assert found["calibration"]["contention"] == pytest.approx(0.9, rel=0.01)
    assert found["results"][0]["ttft_s"]["mean"] > own["results"][0]["ttft_s"]["mean"]
    given = json.loads(simulate(MOONCAKE, *fixed, "--contention", "0.9", "--per-host", "2").out)
    assert given["results"][0]["ttft_s"]["mean"] == pytest.approx(
        found["results"][0]["ttft_s"]["mean"], rel=0.05
    )


def test_tiers_gateways_and_faults(simulate: Simulate) -> None:
    ran = simulate(
        "sessions:requests=150,turns=6,gap_s=10,rate=2,block=64", "-n", "2", "--compare", "kv-cost", "--blocks", "150",
        "--dram", "300", "--ssd", "3000", "--prefetch", "--routers", "2", "--report-delay", "0.05",
        "--crash", "0@10:5", "--stall", "1@30:4", "--seed", "2",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "150 blocks of 64 tokens, 300 in memory, 3,000 in disk" in ran.out
    assert "LOWER" in ran.out.splitlines()[1]
    assert re.search(r"kv-cost: \d+ times a request lost its instance and continued on another one", ran.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ssd", "10"], "--ssd needs --dram"),
        (["--calibrate", "x.json", "--step", "base_s=1"], "--calibrate and --step are mutually exclusive"),
        (["--slowdown", "0.5"], "--slowdown must be above 1, such as 2.5, or 0 for no limit; got 0.5"),
        (["--html", "/absent/page.html"], "folder /absent does not exist"),
        (["--crash", "9@1"], "there is no instance 9"),
        (["--contention", "0.5"], "--contention and --calibrate-shared need the instances that share a host"),
        (["--calibrate-shared", "x.json", "--per-host", "2"], "--calibrate-shared needs --calibrate"),
    ],
)
def test_options_that_do_not_fit(simulate: Simulate, arguments: list[str], message: str) -> None:
    assert message in simulate(MOONCAKE, *arguments).err
