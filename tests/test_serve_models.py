"""``sage infer serve`` by flags: an LLM with an embedding model, a plug-in's own format, a quantization profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "third_party_backend"
SAGE = [sys.executable, "-m", "sage_infer.cli.main"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The example's wheel is found as if it were installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["sage_infer.backends"]
    (info / "entry_points.txt").write_text(
        "[sage_infer.backends]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")}
    paths = [str(info.parent), str(EXAMPLE / "src"), clean.get("PYTHONPATH", "")]
    return {**clean, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of a format that only the example's backend reads."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The tide came in.\n\nThe tide came in again.\n")
    file = tmp_path / "tides.ngram"
    subprocess.run([sys.executable, str(EXAMPLE / "make_model.py"), str(corpus), str(file)], check=True)
    return file


@contextmanager
def serving(environment: dict[str, str], folder: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """What ``sage infer serve --json`` says once it is ready."""
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*SAGE, "infer", "serve", "--port", "0", "--json", *arguments],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:  # indented JSON, whole at its closing brace
            lines.append(line)
            if line == "}\n":
                break
        try:
            assert lines, (folder / "errors").read_text()
            yield json.loads("".join(lines))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=300)


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.loads(response.read())


def refusal(environment: dict[str, str], folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*SAGE, "infer", "serve", "--port", "0", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_the_command_for_an_llm_and_an_embedding_model(environment: dict[str, str], tmp_path: Path) -> None:
    """``sage infer serve --llm … --embedding … --sharing time_slice``, with both engines' progress in the terminal."""
    for name in ("smollm2-135m", "minilm"):
        subprocess.run([*SAGE, "infer", "model", "add", name], check=True, capture_output=True)
    (tmp_path / "sage_infer.yaml").write_text("inference: {options: {kv_cache_gb: 0.1}}\n")
    arguments = ("--llm", "smollm2-135m", "--embedding", "minilm", "--sharing", "time_slice")
    with serving(environment, tmp_path, *arguments) as ready:
        url = ready["url"]
        message = {"role": "user", "content": "What is the capital of France?"}
        chat = post(url + "/v1/chat/completions", {"messages": [message], "temperature": 0, "max_tokens": 12})
        assert "Paris" in chat["choices"][0]["message"]["content"]
        vectors = post(url + "/v1/embeddings", {"input": ["a", "b"]})
        assert [len(item["embedding"]) for item in vectors["data"]] == [384, 384]
        assert vectors["model"] == "minilm"
        assert {share["model"] for share in ready["memory"]} == {"smollm2-135m", "minilm"}
    lines = (tmp_path / "errors").read_text().splitlines()
    for name in ("smollm2-135m", "minilm"):
        assert any(line.startswith(f"{name}: ") for line in lines), lines


def test_a_format_of_its_own_is_served(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    with serving(environment, tmp_path, "--llm", f"{model}@ngram") as ready:
        (served,) = ready["models"]
        assert served["state"] == "ready"
        (share,) = ready["memory"]
        assert share["planned_bytes"] >= model.stat().st_size
        answer = post(
            ready["url"] + "/v1/completions", {"prompt": "The tide", "temperature": 0, "max_tokens": 9}
        )
        assert answer["model"] == served["id"]
        assert answer["choices"][0]["text"] == " came in."


def test_a_format_of_its_own_by_configuration(
    environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    entry = {"model": str(model), "model_id": "tides", "backend": "ngram", "options": {"order": 4}}
    (tmp_path / "sage_infer.yaml").write_text(json.dumps({"serve": {"models": [entry]}}))
    with serving(environment, tmp_path) as ready:
        assert [served["id"] for served in ready["models"]] == ["tides"]
        answer = post(ready["url"] + "/v1/completions", {"model": "tides", "prompt": "The", "max_tokens": 2})
        assert answer["usage"]["completion_tokens"] == 2


def test_a_file_of_another_format_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    code, message = refusal(environment, tmp_path, "--llm", f"{tmp_path / 'notes.txt'}@ngram")
    assert code == 2
    assert "notes.txt is no n-gram model" in message


class TestQuantizationProfiles:
    def test_one_that_the_backend_cannot_use_is_refused_by_the_backend(
        self, environment: dict[str, str], model: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "w8.json").write_text('{"profile_id": "w8", "weight_bits": 8}')
        code, message = refusal(
            environment, tmp_path, "--llm", f"{model}@ngram", "--quant-profile", "w8.json"
        )
        assert code == 4
        assert "does not support quant_profile" in message

    def test_a_mistake_in_one_is_named(
        self, environment: dict[str, str], model: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.json").write_text('{"weight_bitz": 8}')
        code, message = refusal(
            environment, tmp_path, "--llm", f"{model}@ngram", "--quant-profile", "bad.json"
        )
        assert code == 2
        assert "weight_bitz" in message
        code, message = refusal(
            environment, tmp_path, "--llm", f"{model}@ngram", "--quant-profile", "other=bad.json"
        )
        assert code == 2
        assert "names 'other'" in message

    @pytest.mark.parametrize("by_flag", [True, False])
    def test_one_is_loaded_with_its_model(
        self, environment: dict[str, str], tmp_path: Path, by_flag: bool
    ) -> None:
        """The embedded engine with weights of 4 bits: they take less than half of what the default takes."""
        subprocess.run([*SAGE, "infer", "model", "add", "smollm2-135m"], check=True, capture_output=True)
        (tmp_path / "w4.yaml").write_text("profile_id: w4\nweight_bits: 4\n")
        model = {"model": "smollm2-135m", "options": {"kv_cache_gb": 0.1}}
        arguments = ["--quant-profile", "w4.yaml"] if by_flag else []
        config = {"models": [model if by_flag else {**model, "quant_profile": "w4.yaml"}]}
        (tmp_path / "sage_infer.yaml").write_text(json.dumps({"serve": config}))
        with serving(environment, tmp_path, *arguments) as ready:
            (served,) = ready["models"]
            assert served["quant_profile"] == "w4"
            answer = post(ready["url"] + "/v1/completions", {"prompt": "Once upon a time,", "max_tokens": 4})
            assert answer["usage"]["completion_tokens"] == 4
