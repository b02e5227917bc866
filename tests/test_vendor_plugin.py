"""A vendor's wheel that brings one of each kind, and broken wheels beside it: each is named, and the rest works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "vendor_plugin"
SAGE = [sys.executable, "-m", "sage_infer.cli.main", "infer"]
KINDS = ("backend", "detector", "store", "format", "transport", "executor", "config")
MAX_LINES = 400

BROKEN = {
    "expired": "import sys\nsys.exit('the licence has expired')\n",
    "unmarked": "def sage_infer_backends():\n    return []\n",
    "gone": """
from sage_infer import BackendSpec, hookimpl

@hookimpl
def sage_infer_backends():
    return [BackendSpec(name="gone", factory="gone_engine:Gone", serves={"llm"})]
""",
    "faded": """
from sage_infer import DetectorSpec, hookimpl

@hookimpl
def sage_infer_detectors():
    factory, reader = "quokka_sage.detector:QuokkaDetector", "quokka_sage.detector:read_tape"
    return [DetectorSpec(name="faded", factory=factory, hardware={"faded"}, read_recording=reader)]
""",
}
NAMED = {
    "expired": "SystemExit: the licence has expired",
    "unmarked": "unmarked_plugin.sage_infer_backends() lacks @sage_infer.hookimpl",
    "gone": "factory gone_engine:Gone does not exist (there is no module gone_engine)",
    "faded": "read_recording quokka_sage.detector:read_tape does not exist (module quokka_sage.detector has no ",
}
"""Wheels that are broken in one way each, and the reason that every command gives."""
VAGUE = """
from quokka_sage.backend import QuokkaBackend
from sage_infer import BackendSpec, hookimpl
from sage_infer.errors import InvalidRequest

@hookimpl
def sage_infer_backends():
    return [BackendSpec(name="vague", factory="vague_plugin:Vague", serves={"llm"}, sizes="quokka_sage.model:sizes")]

class Vague(QuokkaBackend):
    def _ids(self, prompt):
        try:
            return super()._ids(prompt)
        except InvalidRequest:
            raise InvalidRequest("something is wrong") from None
"""
TWIN = """
from sage_infer import hookimpl
from sage_infer.specs import *

@hookimpl
def sage_infer_backends(): return [BackendSpec(name="twin", factory="x:Y", serves={"llm"})]
@hookimpl
def sage_infer_detectors(): return [DetectorSpec(name="twin", factory="x:Y", hardware={"twin"})]
@hookimpl
def sage_infer_kv_stores(): return [KVStoreSpec(name="twin", factory="x:Y")]
@hookimpl
def sage_infer_kv_formats(): return [KVFormatSpec(name="twin", factory="x:Y", format_ids={"twin/1"})]
@hookimpl
def sage_infer_transports(): return [TransportSpec(name="twin", factory="x:Y", schemes={"file"})]
@hookimpl
def sage_infer_executors(): return [ExecutorSpec(name="twin", factory="x:Y")]
@hookimpl
def sage_infer_models(): return [ModelSpec(name="twin", model_type="llm", resolver="x:Y")]
@hookimpl
def sage_infer_commands(): return [CommandSpec(path="infer twin", app="x:Y", summary="Twin.")]
@hookimpl
def sage_infer_config(): return [ConfigSpec(name="twin", settings="x:Y", template="x:Z")]
"""


class Site:
    """A folder of wheels that are found as if they were installed, and the command with it on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")}
        paths = [str(folder), str(EXAMPLE / "src"), clean.get("PYTHONPATH", "")]
        self.environment = {**clean, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def install(self, name: str, module: str, source: str | None = None) -> None:
        if source is not None:
            (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{name}_sage-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-sage\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sage_infer.backends]\n{name} = {module}\n")

    def run(self, *command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder or self.folder, env=self.environment, capture_output=True, text=True
        )

    def sage(self, *arguments: str) -> str:
        done = self.run(*SAGE, *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        return done.stdout

    def rows(self) -> list[dict[str, Any]]:
        return json.loads(self.sage("plugin", "list", "--json"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The example's wheel, with a model in its own format."""
    site = Site(tmp_path_factory.mktemp("site"))
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    ((name, module),) = points["sage_infer.backends"].items()
    site.install(name, module)
    done = site.run(sys.executable, "-m", "quokka_sage.model", str(EXAMPLE / "corpus.txt"), "chat.qk")
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def crowd(vendor: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The same beside wheels that are broken in one way each, and two that claim the same names."""
    site = Site(tmp_path_factory.mktemp("crowd"))
    site.install("quokka", "quokka_sage.plugin")
    (site.folder / "chat.qk").write_bytes((vendor.folder / "chat.qk").read_bytes())
    for name, source in BROKEN.items():
        site.install(name, f"{name}_plugin", source)
    for name in ("castor", "pollux"):
        site.install(name, f"{name}_plugin", TWIN)
    return site


def test_everything_is_listed(vendor: Site) -> None:
    rows = [row for row in vendor.rows() if row["distribution"] == "quokka-sage"]
    assert {row["state"] for row in rows} == {"ready"}
    assert sorted(row["kind"] for row in rows) == sorted([*KINDS, "backend"])
    backends = json.loads(vendor.sage("backend", "list", "--json"))
    assert {"quokka", "quokka-embedding"} <= {row["name"] for row in backends}


def test_a_plug_in_of_each_kind_is_short() -> None:
    files = [file for file in EXAMPLE.rglob("*.py") if "tests" not in file.relative_to(EXAMPLE).parts]
    assert sum(len(file.read_text("utf-8").splitlines()) for file in files) <= MAX_LINES


def test_its_hardware_is_found_where_the_configuration_says(vendor: Site) -> None:
    recording = EXAMPLE / "tests" / "recordings" / "two.txt"
    (vendor.folder / "sage_infer.yaml").write_text(f"quokka:\n  smi_output: {recording}\n")
    try:
        shown = vendor.sage("hal", "profile", "--json")
    finally:
        (vendor.folder / "sage_infer.yaml").unlink()
    devices = json.loads(shown)["accelerators"]
    assert [device["hardware_backend"] for device in devices if device["vendor"] == "Quokka"] == [
        "quokka"
    ] * 2
    assert "quokka.smi_output" in vendor.sage("config", "show")


def test_the_contract_kits_pass(vendor: Site) -> None:
    """The example's own tests, which subclass the kit of each kind."""
    pytest_command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        ".",
        "tests",
    )
    done = vendor.run(*pytest_command, folder=EXAMPLE)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["backend", "detector", "store", "format", "transport"])
def test_the_command_finds_the_kit_of_each_kind(vendor: Site, kind: str) -> None:
    """The backend with a file of a format that only it reads."""
    model = ("--model", "chat.qk") if kind == "backend" else ()
    report = json.loads(vendor.sage("plugin", "test", "quokka", "--kind", kind, "--json", *model))
    assert report["failed"] == 0
    assert report["passed"] > 5


def test_a_failed_kit_is_not_an_error_of_the_command(vendor: Site) -> None:
    """The exit code says it; no wheel is asked to repair the command."""
    done = vendor.run(
        *SAGE, "plugin", "test", "quokka-embedding", "--model", "chat.qk", "-k", "batch",
        "--set", "batch_tolerance=-1",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed" in done.stdout
    assert "report it to its authors" not in done.stderr


def test_a_model_is_asked_for(vendor: Site) -> None:
    """A backend with a format of its own has no sample model: one error instead of a failure per test."""
    done = vendor.run(*SAGE, "plugin", "test", "quokka", "--kind", "backend")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "name a model with --model FILE" in done.stderr
    assert "failed" not in done.stdout


def test_a_message_that_names_nothing_is_quoted(vendor: Site) -> None:
    """The report of a failed kit shows which words were expected, and the message that lacks them."""
    vendor.install("vague", "vague_plugin", VAGUE)
    done = vendor.run(
        *SAGE, "plugin", "test", "vague", "--kind", "backend", "--model", "chat.qk", "--json", "-k", "vocabulary"
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "something is wrong"
        in done.stdout.partition('"reason": "Regex pattern did not match.')[2].split("\n")[0]
    )


@pytest.fixture
def server(vendor: Site) -> Iterator[str]:
    with (vendor.folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*SAGE, "serve", "--llm", "chat.qk@quokka", "--port", "0", "--json"],
            cwd=vendor.folder, env=vendor.environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:  # indented JSON, whole at its closing brace
            lines.append(line)
            if line == "}\n":
                break
        try:
            assert lines, (vendor.folder / "errors").read_text()
            yield json.loads("".join(lines))["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=300)


def test_a_chat_is_answered_over_http(server: str) -> None:
    body = {"messages": [{"role": "user", "content": "What do you eat?"}], "temperature": 0}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        (choice,) = json.loads(response.read())["choices"]
    assert choice["message"]["content"] == "Leaves, and the water that is in them."
    assert choice["finish_reason"] == "stop"


def test_a_bad_option_is_the_users(vendor: Site) -> None:
    done = vendor.run(*SAGE, "generate", "-b", "quokka", "-m", "chat.qk", "-o", "max_queue=many", "Hello!")
    assert done.returncode == 2
    assert "max_queue of quokka must be a positive integer, got 'many'" in done.stderr


def test_broken_wheels_are_named(crowd: Site) -> None:
    rows = {row["name"]: row for row in crowd.rows()}
    for name, reason in NAMED.items():
        assert (rows[name]["state"], rows[name]["distribution"]) == ("broken", f"{name}-sage")
        assert reason in rows[name]["reason"]


@pytest.mark.parametrize("name", NAMED)
def test_every_command_names_what_is_broken(crowd: Site, name: str) -> None:
    assert NAMED[name] in crowd.sage("plugin", "show", name)
    done = crowd.run(*SAGE, "plugin", "test", name)
    assert done.returncode == 3, done.stderr
    assert NAMED[name] in done.stderr
    assert "report it to its authors" not in done.stderr


@pytest.mark.parametrize("kind", [*KINDS, "model", "command"])
def test_a_name_that_two_wheels_claim_is_neither_ones(crowd: Site, kind: str) -> None:
    twins = [row for row in crowd.rows() if row["kind"] == kind and row["name"].endswith("twin")]
    assert {row["distribution"] for row in twins} == {"castor-sage", "pollux-sage"}
    for row in twins:
        assert row["state"] == "broken"
        assert "castor-sage" in row["reason"]
        assert "pollux-sage" in row["reason"]
    name = twins[0]["name"]
    assert "pollux-sage" in crowd.sage("plugin", "show", name, "--kind", kind)
    done = crowd.run(*SAGE, "plugin", "test", name, "--kind", kind)
    assert done.returncode == 3, done.stderr
    assert "castor-sage" in done.stderr


def test_what_is_not_broken_works(crowd: Site) -> None:
    ready = {row["kind"] for row in crowd.rows() if row["name"] == "quokka" and row["state"] == "ready"}
    assert ready == set(KINDS)
    answer = crowd.sage("generate", "-b", "quokka", "-m", "chat.qk", "Where do you live?")
    assert answer.startswith("On an island")


def test_a_name_that_two_wheels_claim_is_refused_in_use(crowd: Site) -> None:
    done = crowd.run(*SAGE, "generate", "-b", "twin", "-m", "chat.qk", "Hello!")
    assert done.returncode == 3
    assert "castor-sage" in done.stderr
    assert "pollux-sage" in done.stderr
