"""Run the kit for an installed backend in a separate process, so that an engine crash is a failed test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sage_infer.errors import InvalidRequest, SageInferError
from sage_infer.system.python import module_command

from sage_infer_testing.results import ContractReport, TestResult
from sage_infer_testing.suite import NOT_MADE
from sage_infer_testing.target import ENVIRONMENT_KEY, Target

__all__ = ["run_contract"]

_NOTHING_COLLECTED = 5  # pytest's exit codes
_USAGE_ERROR = 4
_SHOWN = 15  # last output lines of a dead process

Listener = Callable[[dict[str, Any]], None]


def run_contract(
    target: Target, *, select: str = "", junit: Path | None = None, listener: Listener = lambda event: None
) -> ContractReport:
    """Run all tests of the target's kits, or those that match ``select`` (pytest's ``-k``).

    ``listener`` is called for each event: ``collected`` with a count, ``started`` and ``finished`` with the test.

    Raises:
        InvalidRequest: no test matches ``select``.
        SageInferError: the test process could not run the kit.
    """
    with tempfile.TemporaryDirectory(prefix="sage-infer-testing-") as folder:
        log = Path(folder, "log.txt")
        with log.open("wb") as printed:
            child = _start(target, Path(folder), select, junit, printed)
        try:
            return _follow(child, target, select, listener, log)
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()


def _start(
    target: Target, folder: Path, select: str, junit: Path | None, printed: IO[bytes]
) -> subprocess.Popen[str]:
    config = folder / "pytest.ini"
    config.write_text("[pytest]\n")
    test_module = Path(__file__).with_name("installed.py")
    arguments = [
        f"--config-file={config}",
        f"--rootdir={folder}",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--capture=no",  # after a crash the log must have the output of the engine
    ]
    arguments += [f"-k={select}"] if select else []
    arguments += [f"--junitxml={junit.absolute()}"] if junit else []
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    environment |= {ENVIRONMENT_KEY: target.to_json(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [*module_command("sage_infer_testing.child"), *arguments, str(test_module)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=printed, text=True, encoding="utf-8", env=environment
    )


def _follow(
    child: subprocess.Popen[str], target: Target, select: str, listener: Listener, log: Path
) -> ContractReport:
    results: list[TestResult] = []
    count, running, code = 0, None, None
    for event in _events(child):
        kind = event.pop("event")
        if kind == "broken":
            raise SageInferError(f"the kit cannot be collected: {_last_line(event['details'])}")
        if kind == "collected":
            count = event["count"]
        elif kind == "started":
            running = event
        elif kind == "finished":
            running = None
            results.append(TestResult(**event))
            if target.is_sample and event["reason"].startswith(NOT_MADE):
                names = ", ".join(model.model_id for model in target.models.values())
                raise InvalidRequest(
                    f"{target.backend!r} cannot open the sample model {names}: "
                    f"{event['reason'].removeprefix(NOT_MADE).strip(' ()')}; name a model that it reads with --model"
                )
        elif kind == "done":
            code = event["code"]
        listener({"event": kind, **event})
    child.wait()
    if code == _USAGE_ERROR or (code == _NOTHING_COLLECTED and select):
        raise InvalidRequest(f"no test matches -k {select!r}; without it all tests run")
    if code is None:
        death = f"the test process died: {_how_it_ended(child.returncode)}"
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_SHOWN:])
        if running is None:
            raise SageInferError(f"{death}; it last printed: {_last_line(tail)}")
        results.append(TestResult(**running, outcome="failed", seconds=0.0, reason=death, details=tail))
    models = ", ".join(model.model_id for model in target.models.values())
    return ContractReport(
        backend=target.backend, model=models, results=tuple(results), not_run=count - len(results)
    )


def _events(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        yield json.loads(line)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"{signal.Signals(-code).name} (out of memory, or a crash in native code)"
    except ValueError:
        return f"signal {-code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("E").strip() if lines else "nothing"
