"""Wheels of ``sage infer plugin new``: built, installed, listed, typed, and what their kits say is left to write.

All are installed into one folder, and all kits run in one process.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest
from hatchling.builders.wheel import WheelBuilder
from sage_infer.cli.main import app
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
MADE = {
    "try-text": ["--kind", "backend"],
    "try-vectors": ["--kind", "embedding"],
    "try-devices": ["--kind", "detector"],
    "try-store": ["--kind", "kvstore"],
    "try-moves": ["--kind", "transport"],
    "try-places": ["--kind", "executor"],
    "try-npu": ["--vendor"],
}
LISTED = {
    ("backend", "try-text"): "ready",
    ("backend", "try-vectors"): "ready",
    ("detector", "try-devices"): "no-hardware",
    ("store", "try-store"): "ready",
    ("transport", "try-moves"): "ready",
    ("executor", "try-places"): "ready",
    ("backend", "try-npu"): "missing-requirement",
    ("backend", "try-npu-embedding"): "missing-requirement",
    ("detector", "try-npu"): "no-hardware",
}
LEFT = {
    "try-text/tests/test_backend.py": {"encode", "decode", "weights"},
    "try-vectors/tests/test_embedding.py": {"encode", "vectors"},
    "try-devices/tests/test_detector.py": {"read"},
    "try-store/tests/test_store.py": {"write", "read", "erase"},
    "try-moves/tests/test_transport.py": {"move"},
    "try-places/tests/test_executor.py": {"launch"},
}
"""Methods that the kits name."""

ECHO = {
    "return the token ids of the text, with the model's tokenizer": "return list(text.encode())",
    "return the text of the token ids, with the model's tokenizer": (
        'return bytes(token for token in token_ids if token < 256).decode("utf-8", "replace")'
    ),
    "compute the model, and return exp(logit - max(logits)) of each next token": (
        "return {token: 1.0 + 9.0 * (token == token_ids[-2:][0]) for token in range(32, 127)}"
    ),
}
"""An engine that repeats the byte before the last one."""


VENDOR = Path(__file__).with_name("vendor")
EDITS = {
    "src/sage_infer_tarn/plugin.py": [
        ('# sizes="sage_infer_tarn.engine:sizes"', 'sizes="sage_infer_tarn.engine:sizes"'),
        ('# sizes="sage_infer_tarn.embedder:sizes"', 'sizes="sage_infer_tarn.engine:sizes"'),
    ],
    "src/sage_infer_tarn/backend.py": [
        ('("streaming", ', '("streaming", "chat", '),
        ("from pathlib import Path\n", "from pathlib import Path\nfrom typing import Any\n"),
        (
            "    async def complete(\n",
            "    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> Prompt:\n"
            "        lines = [f\"{message['role']}: {message.get('content') or ''}\\n\" for message in messages]\n"
            '        return Prompt(text="".join(lines) + "assistant: " * add_generation_prompt)\n\n'
            "    async def complete(\n",
        ),
    ],
    "tests/test_backend.py": [
        ("PATH = Path(__file__).parent\n", 'PATH = Path(__file__).parent / "model.tarn"\n')
    ],
    "tests/test_embedding.py": [
        ("PATH = Path(__file__).parent\n", 'PATH = Path(__file__).parent / "model.tarn"\n')
    ],
}
"""What an invented vendor changes in files of the scaffold that it does not write anew (``VENDOR`` has those)."""
MOST_LINES = 250


class Case(NamedTuple):
    outcome: str
    reason: str


class Made(NamedTuple):
    folder: Path
    site: Path
    environment: dict[str, str]


def sage(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "sage_infer.cli.main", "infer", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All wheels, built without isolation and installed into a folder."""
    folder, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    dist = tmp_path_factory.mktemp("dist")
    for name, arguments in MADE.items():
        new(name, *arguments, "--into", str(folder))
        wheel = folder / f"sage-infer-{name}"
        # In this process, because seven starts of a builder take longer than all that is built.
        list(WheelBuilder(str(wheel)).build(directory=str(dist), versions=["standard"]))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    command = [*pip, "--no-compile", "--no-index", "--target", str(site), *map(str, dist.glob("*.whl"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return Made(folder, site, {"PYTHONPATH": path})


def new(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["infer", "plugin", "new", *arguments])
    assert done.exit_code == 0, done.exception


def kit(
    made: Made, folder: Path, *tests: Path, path: Path | None = None, select: str = ""
) -> dict[str, dict[str, Case]]:
    """Outcome and reason of each test by its file and its name with its class; the files are below ``folder``."""
    report = made.folder.parent / f"report-{len(os.listdir(made.folder.parent))}.xml"
    stand_in = made.folder / "sage-infer-try-places" / "tests" / "stand_in"
    places = [*([path] if path else []), stand_in, made.environment["PYTHONPATH"]]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
        "--config-file=/dev/null", f"--rootdir={folder}", f"--junitxml={report}",
        f"-k={select}", *map(str, tests),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[str, Case]] = {test.relative_to(folder).as_posix(): {} for test in tests}
    for case in ElementTree.parse(report).iter("testcase"):
        told = [
            (child.tag, child.get("message", ""))
            for child in case
            if child.tag in ("failure", "error", "skipped")
        ]
        outcome, reason = told[0] if told else ("passed", "")
        outcome = {"failure": "failed", "error": "failed"}.get(outcome, outcome)
        home = f"{case.get('classname')}."  # of a method: the file and the class
        file = next(
            file for file in found if home.startswith(file.removesuffix(".py").replace("/", ".") + ".")
        )
        name = f"{home.rstrip('.').rpartition('.')[2]}::{case.get('name')}"
        found[file][name] = Case(outcome, reason)
    return found


def test_all_are_listed(made: Made) -> None:
    rows = json.loads(sage("plugin", "list", "--json", **made.environment))
    found = {(row["kind"], row["name"]): row["state"] for row in rows if row["name"].startswith("try-")}
    assert found == LISTED


def test_the_kits_say_what_is_left(made: Made) -> None:
    vendor = made.folder / "sage-infer-try-npu" / "tests"
    whole = [vendor / "test_plugin.py", vendor / "test_doctor.py"]
    results = kit(made, made.folder, *(made.folder / f"sage-infer-{file}" for file in LEFT), *whole)
    for file, left in LEFT.items():
        cases = results[f"sage-infer-{file}"]
        failed = {test: case.reason for test, case in cases.items() if case.outcome == "failed"}
        named = set()
        for reason in failed.values():
            named |= {
                *re.findall(r"(\w+)\(\) is not written yet", reason),
                *re.findall(r"nor is (\w+)\(\)", reason),
            }
        assert named == left, failed
        assert len(failed) <= 2, failed  # one of each kit
        waiting = [case.reason for case in cases.values() if "waits for" in case.reason]
        assert len(waiting) > 2, cases
        assert all(any(f"{stub}(), see" in reason for stub in left) for reason in waiting)
    for path in whole:
        cases = results[path.relative_to(made.folder).as_posix()]
        assert {case.outcome for case in cases.values()} == {"passed"}, cases


def test_an_engine_of_three_lines_passes_the_kit(made: Made, tmp_path: Path) -> None:
    wheel = made.folder / "sage-infer-try-text"
    package = tmp_path / "sage_infer_try_text"
    package.mkdir()
    for file in (wheel / "src" / package.name).iterdir():
        text = file.read_text("utf-8")
        if file.name == "engine.py":
            for told, line in ECHO.items():
                assert f'raise NotImplementedError("{told}")' in text
                text = text.replace(f'raise NotImplementedError("{told}")', line)
        (package / file.name).write_text(text, "utf-8")
    chosen = "greedy or stop_string or seed or healthy or detokenize or abort"
    (cases,) = kit(made, wheel, wheel / "tests" / "test_backend.py", path=tmp_path, select=chosen).values()
    failed = {test: case for test, case in cases.items() if case.outcome == "failed"}
    assert not failed
    assert not [case for case in cases.values() if "waits for" in case.reason]
    assert cases["TestBackend::test_greedy_is_deterministic"].outcome == "passed"


def test_an_invented_vendor_writes_few_lines(made: Made, tmp_path: Path) -> None:
    """A chat model, an embedder and a detector with their file formats, on a scaffold, pass all kits."""
    new("tarn", "--vendor", "--into", str(tmp_path))
    wheel = tmp_path / "sage-infer-tarn"
    before = {path: path.read_text("utf-8") for path in wheel.rglob("*") if path.is_file()}
    for path in VENDOR.rglob("*.*"):
        (wheel / path.relative_to(VENDOR)).write_text(path.read_text("utf-8"), "utf-8")
    for name, edits in EDITS.items():
        text = before[wheel / name]
        for old, instead in edits:
            assert text.count(old) == 1, f"{name}: {old}"
            text = text.replace(old, instead)
        (wheel / name).write_text(text, "utf-8")
    added = 0
    for path, old_text in before.items():
        changes = difflib.ndiff(old_text.splitlines(), path.read_text("utf-8").splitlines())
        added += sum(line.startswith("+ ") and bool(line[2:].strip()) for line in changes)
    assert 100 < added <= MOST_LINES
    corpus = (ROOT / "examples" / "vendor_plugin" / "corpus.txt").read_text("utf-8")
    (wheel / "tests" / "model.tarn").write_text(f"tarn 1\n{corpus}", "utf-8")
    (wheel / "src" / "sage_infer_tarn-0.1.0.dist-info").mkdir()
    info = wheel / "src" / "sage_infer_tarn-0.1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sage-infer-tarn\nVersion: 0.1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\ntarn = sage_infer_tarn.plugin\n", "utf-8")
    cases = [
        (test, case)
        for found in kit(made, wheel, wheel / "tests", path=wheel / "src").values()
        for test, case in found.items()
    ]
    assert not [
        (test, case) for test, case in cases if case.outcome == "failed" or "waits for" in case.reason
    ]
    assert sum(case.outcome == "passed" for _, case in cases) > 120


def test_the_page_has_the_engine_that_is_tested(made: Made) -> None:
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text("utf-8")
    assert all(line in page for line in ECHO.values())


def test_all_are_typed(made: Made) -> None:
    places = [made.site / f"sage_infer_{name.replace('-', '_')}" for name in MADE]
    command = [
        sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "/dev/null",
        "--cache-dir", str(ROOT / ".mypy_cache" / "scaffold"), *map(str, places),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, cwd=made.site,
        env={**os.environ, "MYPYPATH": str(made.site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
