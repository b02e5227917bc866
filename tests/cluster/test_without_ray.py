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
from served_command import GUARD_S, SAGE, served


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
    command = ("llm", "serve", "-m", "smollm2-135m", "--replicas", "2", "-o", "kv_cache_gb=0.2")
    with served(tmp_path, *command, environment=environment) as (server, status):
        url = status["url"]
        body: dict[str, Any] = {"model": "smollm2-135m", "prompt": "Once", "max_tokens": 2}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            assert json.load(answer)["choices"][0]["text"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(GUARD_S) == 0
