"""A laptop never imports Ray: a package of that name that cannot be imported disturbs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import model_specs
from sage_infer.models import add_model

SAGE = [sys.executable, "-m", "sage_infer.cli.main"]
GUARD_S = 300


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``import ray`` ends the process."""
    trap = tmp_path / "trap" / "ray"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("import os; os.write(2, b'ray was imported'); os._exit(86)\n")
    paths = [str(trap.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_CONFIG_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", "import ray"], env=environment).returncode == 86
    return environment


@pytest.mark.parametrize(
    "command",
    [["infer", "plugin", "list"], ["infer", "backend", "list"], ["llm", "serve", "--help"]],
    ids=" ".join,
)
def test_commands_do_not_import_ray(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run([*SAGE, *command], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if command[1] == "plugin":
        assert "sage-infer-ray" in done.stdout


def test_serving_on_this_machine_does_not_import_ray(environment: dict[str, str], tmp_path: Path) -> None:
    add_model(model_specs()["smollm2-135m"])
    command = [*SAGE, "llm", "serve", "-m", "smollm2-135m", "--replicas", "2", "-o", "kv_cache_gb=0.2"]
    log = tmp_path / "errors"
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*command, "--port", "0", "--json"], env=environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert server.stdout is not None
    try:
        text = ""
        while not text.rstrip().endswith("\n}"):
            line = server.stdout.readline()
            assert line, log.read_text()
            text += line
        url = json.loads(text)["url"]
        body: dict[str, Any] = {"model": "smollm2-135m", "prompt": "Once", "max_tokens": 2}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            assert json.load(answer)["choices"][0]["text"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(GUARD_S) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_the_executor_without_ray_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as metadata\n"
        "import runpy, sys\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name == 'ray': raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "sys.argv = ['sage', 'llm', 'serve', '-m', 'smollm2-135m', '--executor', 'ray', '--port', '0']\n"
        "runpy.run_module('sage_infer.cli.main', run_name='__main__')\n"
    )
    add_model(model_specs()["smollm2-135m"])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "pip install 'sage-infer-ray[ray]'" in done.stderr


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--ray-address", "head:6379"], "--ray-address belongs to --executor ray"),
        (["--gpus", "0.5"], "--gpus belongs to an executor on a cluster"),
        (["--executor", "ray", "--gpus", "half"], "--gpus must be N or MODEL=N"),
        (["--executor", "ray", "--cpus", "other=2"], "--cpus names 'other'"),
        (["--executor", "ray", "--pd", "1:1"], "--pd is not supported with --executor ray"),
        (["--executor", "rya"], "no executor 'rya'; did you mean 'ray'?"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: list[str], wanted: str, tmp_path: Path) -> None:
    add_model(model_specs()["smollm2-135m"])
    command = [*SAGE, "llm", "serve", "-m", "smollm2-135m", "--port", "0", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode not in (0, -signal.SIGKILL)
    assert wanted in done.stderr.replace("\n", " ")
