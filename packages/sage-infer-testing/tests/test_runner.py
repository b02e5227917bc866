"""``sage infer backend test``: from the name of an installed backend to a table, JSON, XML and an exit code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from rich.console import Console
from sage_infer.errors import (
    BackendUnavailable,
    InvalidRequest,
    ModelNotFound,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer_testing import cli, plugin
from sage_infer_testing.results import ContractReport, TestResult
from sage_infer_testing.runner import run_contract
from sage_infer_testing.table import live, print_report
from sage_infer_testing.target import Target, find_targets
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("vendor")


def sage(*arguments: str) -> Any:
    """Run the command as the ``sage`` program does, without its error handling."""
    app = typer.Typer()
    app.command()(cli.test)
    return CliRunner().invoke(app, list(arguments))


def test_plugin_names_the_command() -> None:
    specs = {spec.path: spec.app for spec in plugin.sage_infer_commands()}
    assert specs == {
        "infer backend test": "sage_infer_testing.cli:test",
        "infer plugin new": "sage_infer_testing.scaffold.cli:new",
        "infer plugin test": "sage_infer_testing.cli:test_plugin",
    }


def sage_plugin(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(cli.test_plugin)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("name", "select", "suite"),
    [
        ("toy-store", "TestStore and test_has_the_shape", "TestStore"),
        ("toy-place", "TestExecutor", "TestExecutor"),
        ("toy-form", "TestCodec", "TestCodec"),
        ("toy-files", "TestTransport and (moves or test_has_the_shape)", "TestTransport"),
        ("toy-files", "TestEndpoint", "TestEndpoint"),
        ("toy-eye", "survives_json", "TestDetector"),
        ("toy-embedder", "embed_gives or TestEmbedding and test_has_the_shape", "TestEmbedding"),
    ],
)
def test_things_of_other_kinds_run_the_kit_of_their_kind(
    name: str, select: str, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGE_INFER_INFERENCE_EMBEDDING_BACKEND", "toy")  # the one that toy-place knows
    report = json.loads(sage_plugin(name, "-k", f"{select} or hooks_return", "--json").stdout)
    assert report["ok"] is True
    suites = {test["suite"] for test in report["tests"]}
    assert suites == {"TestPlugin", suite}
    assert report["passed"] >= 2


def test_a_store_that_breaks_its_contract_fails() -> None:
    result = sage_plugin("toy-leaking", "-k", "TestStore")
    assert result.exit_code == 1
    assert "failed TestStore::" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("toy-rdma",), UnsupportedFeature, "subclass sage_infer_testing.TransportContract"),
        (("toy-odd",), UnsupportedFeature, "subclass sage_infer_testing.KVFormatCodecContract"),
        (("toy-eye", "--option", "a=1"), InvalidRequest, "a detector takes no options"),
        (("toy-eye", "-m", "talker"), InvalidRequest, "a detector is tested without a model"),
        (("toy-store", "--kind", "executor"), BackendUnavailable, "no executor 'toy-store'"),
        (("toy-store", "--set", "losless=false"), InvalidRequest, "the kit has no setting losless"),
    ],
)
def test_things_that_cannot_be_tested_so_are_refused(
    arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        raise sage_plugin(*arguments).exception


def test_an_llm_passes_and_the_table_says_so(tmp_path: Path) -> None:
    junit = tmp_path / "report.xml"
    result = sage("toy", "-k", "healthy or guided_choice or refuses_media or heavy", "--junit", str(junit))
    assert result.exit_code == 0, result.output
    assert "is healthy" in result.stdout
    assert "3 passed, 1 skipped" in " ".join(result.stdout.split()) or "4 passed" in result.stdout
    assert "TestPlugin" in result.stdout
    assert "TestInference" in result.stdout
    assert {case.get("name") for case in ElementTree.parse(junit).iter("testcase")} >= {"test_is_healthy"}


def test_options_reach_the_backend_and_settings_the_kit() -> None:
    arguments = ("--option", "claims=streaming", "--set", "exact_batch_invariance=false", "-m", "talker")
    result = sage("toy", "-k", "guided_choice or refuses_chats", *arguments, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["model"] == "talker"
    tests = {test["name"]: test for test in report["tests"]}
    assert tests["test_guided_choice"]["reason"] == "backend does not claim 'guided_choice'"
    assert tests["test_refuses_chats"]["outcome"] == "passed"


def test_a_failure_is_explained() -> None:
    result = sage("toy-forgetful", "-k", "healthy", "--details")
    assert result.exit_code == 1
    assert "failed TestInference::test_is_healthy" in result.stdout
    assert "I forgot [how] I am" in result.stdout
    assert "how to fix:" in result.stdout
    assert "Traceback" in result.stdout or "kit_vendor.py" in result.stdout


def test_a_crash_is_a_failed_test() -> None:
    target = find_targets("toy-crashing", None, {}, {})
    seen: list[str] = []
    report = run_contract(
        target, select="healthy or stats_are_gauges", listener=lambda e: seen.append(e["event"])
    )
    assert not report.ok
    (crash,) = [r for r in report.results if r.outcome == "failed"]
    assert crash.name == "test_is_healthy"
    assert "exit code 77" in crash.reason
    assert "about to crash" in crash.details
    assert report.not_run == 1
    assert seen[0] == "collected"


def test_a_sample_model_that_cannot_be_opened_is_one_error() -> None:
    """Without ``--model`` nobody chose the file; with it, each test says why it did not run."""
    result = sage("toy-picky", "-k", "healthy or stats_are_gauges")
    assert isinstance(result.exception, InvalidRequest), result.output
    message = str(result.exception)
    assert message.startswith("'toy-picky' cannot open the sample model smollm2-135m: ")
    assert "toy-picky reads no GGUF files" in message
    assert message.endswith("; name a model that it reads with --model")
    chosen = sage("toy-picky", "-k", "healthy or stats_are_gauges", "-m", "talker")
    assert chosen.exit_code == 1, chosen.output
    assert "2 failed" in chosen.stdout


def test_an_embedder_and_a_hybrid_have_their_kits() -> None:
    assert set(find_targets("toy-embedder", None, {}, {}).suites()) == {"TestPlugin", "TestEmbedding"}
    hybrid = find_targets("toy-hybrid", "talker", {}, {})
    assert hybrid.suites()["TestHybrid"].llm == "talker"  # type: ignore[attr-defined]
    assert run_contract(find_targets("toy-embedder", "minilm", {}, {}), select="embed_gives").ok
    assert Target.from_json(hybrid.to_json()) == hybrid


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("tooy",), BackendUnavailable, "did you mean 'toy'"),
        (("toy-missing",), BackendUnavailable, "no-such-wheel-kit"),
        (("toy", "-m", "nowhere"), ModelNotFound, "nowhere"),
        (("toy", "-m", "minilm"), InvalidRequest, "serves llm"),
        (("toy-hybrid",), InvalidRequest, "--model"),
        (("toy", "--set", "colour=red"), InvalidRequest, "no setting colour"),
        (("toy", "--option", "nonsense"), InvalidRequest, "KEY=VALUE"),
        (("toy", "-k", "no_such_test"), InvalidRequest, "no_such_test"),
        (("toy", "-k", "a ) b"), InvalidRequest, "-k"),
    ],
)
def test_errors_are_plain(arguments: tuple[str, ...], error: type[SageInferError], message: str) -> None:
    result = sage(*arguments)
    assert isinstance(result.exception, error), result.output
    assert message in str(result.exception)


def test_a_kit_that_cannot_be_collected_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_targets("toy", None, {}, {})
    monkeypatch.setattr(Target, "to_json", lambda self: "{")
    with pytest.raises(SageInferError, match="cannot be collected"):
        run_contract(target)


def test_a_process_that_dies_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_targets("toy", None, {}, {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SageInferError, match=r"died: exit code 1; it last printed: nothing"):
        run_contract(target)


def test_signals_have_names() -> None:
    from sage_infer_testing.runner import _how_it_ended

    assert "SIGKILL" in _how_it_ended(-9)
    assert _how_it_ended(-1000) == "signal 1000"


def test_the_terminal_shows_progress() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    finished = {"event": "finished", "suite": "TestIt", "name": "test_x", "outcome": "failed"}
    with live("testing toy", console) as show:
        for event in (
            {"event": "collected", "count": 2}, {"event": "started", "name": "test_x"}, finished,
            {**finished, "outcome": "passed"}, {"event": "done"},
        ):  # fmt: skip
            show(event)
    assert "TestIt::test_x" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_counts_what_did_not_run() -> None:
    results = (
        TestResult(suite="TestIt", name="test_a_thing", outcome="xfailed", seconds=0.5, reason="issue [7]"),
        TestResult(suite="TestIt", name="test_other", outcome="failed", seconds=0.5),
    )
    report = ContractReport(backend="toy", model="talker", results=results, not_run=3)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    print_report(report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "issue [7]" in text
    assert "1 failed, 1 xfailed, 3 not run in 1.0 s" in text
    assert not report.ok
