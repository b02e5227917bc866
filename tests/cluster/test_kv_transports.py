"""`sage llm serve --pd 1:1 --kv-transport …` on real engines: answers equal those of one replica."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import model_specs
from sage_infer.errors import BackendUnavailable
from sage_infer.models import add_model
from served_command import GUARD_S, SAGE, served

HAS_NIXL = any(find_spec(name) is not None for name in ("nixl_cu12", "nixl_cu13", "nixl_rocm"))
NEEDS_NIXL = pytest.mark.skipif(
    not HAS_NIXL, reason="no build of NIXL is installed; `hatch run nixl:served` has one"
)
NEEDS_OPENVINO = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs OpenVINO; the default environment has it"
)
NEEDS_VLLM = pytest.mark.skipif(
    find_spec("vllm") is None, reason="needs vLLM; `hatch run vllm.0.32:served` has it"
)

MODEL = "smollm2-135m"
# Without prefix caching, so that a replica that is alone computes what it was given before.
OPTIONS = {
    "openvino": ["weight_format=f32", "kv_cache_gb=0.25", "prefix_caching=false"],
    "vllm": [
        "dtype=float32", "eager=true", "kv_cache_gb=0.25", "prefix_caching=false", "max_sequence_length=1024",
    ],
}  # fmt: skip
FILLER = (
    "The engine reads a page of keys and values for every token that it computes, and writes one of its own. "
)
PROMPTS = (
    {"prompt": "In one sentence, why does memory bandwidth matter?"},
    {"prompt": "The capital of France is"},
    {"prompt": 12 * FILLER + "In short, a page table"},
    {"prompt": "Three facts about rivers: ", "temperature": 0.8, "seed": 3},
)


def answer(url: str, body: dict[str, Any]) -> str:
    request = {"model": MODEL, "max_tokens": 8, "temperature": 0, **body}
    sent = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(request).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=GUARD_S) as found:
        text: str = json.load(found)["choices"][0]["text"]
        return text


def handed_over(url: str) -> tuple[int, int]:
    """Number of requests whose KV was handed over, and of those where it was not although it should have been."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=GUARD_S) as found:
        text = found.read().decode()
    counts = [
        re.search(rf'^sage_llm_hand_overs_total\{{[^}}]*outcome="{name}"[^}}]*\}} (\d+)', text, re.MULTILINE)
        for name in ("done", "given_up")
    ]
    assert all(counts), text
    return int(counts[0][1]), int(counts[1][1])


@pytest.mark.parametrize(
    ("backend", "transport"),
    [
        pytest.param("openvino", "tcp,preset=low-latency", marks=NEEDS_OPENVINO),
        pytest.param("openvino", "nixl,preset=low-latency", marks=[NEEDS_OPENVINO, NEEDS_NIXL]),
        pytest.param("vllm", "local", marks=NEEDS_VLLM),
    ],
)
def test_two_replicas_equal_one(
    backend: str, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One replica computes the prompts, and another continues them; then it computes them itself."""
    # One thread: threads that wait for each other by spinning are slow on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    add_model(model_specs()[MODEL])
    options = [word for option in OPTIONS[backend] for word in ("-o", option)]
    # All prompts are handed over, however short, and however late that makes their answers.
    policy = ["--policy", "pd:min_tokens=1,delay_s=100000"]
    pd = ["--pd", "1:1", "--kv-transport", transport, *policy]
    with served(tmp_path, "llm", "serve", "--backend", backend, "-m", MODEL, *options, *pd) as (_, ready):
        url = ready["url"]
        apart = [answer(url, prompt) for prompt in PROMPTS]
        assert handed_over(url) == (len(PROMPTS), 0), (tmp_path / "errors").read_text()
        drain = [*SAGE, "llm", "drain", f"{MODEL}/p0", "--port", url.rpartition(":")[2]]
        drained = subprocess.run(drain, capture_output=True, text=True, check=False)
        assert drained.returncode == 0, drained.stderr
        assert apart == [answer(url, prompt) for prompt in PROMPTS]
        assert handed_over(url) == (len(PROMPTS), 0)


@pytest.mark.skipif(
    HAS_NIXL or find_spec("sage_infer_nixl") is None, reason="NIXL is installed, or its wheel is not"
)
def test_a_transport_without_its_libraries_says_what_to_install() -> None:
    done = subprocess.run(
        [*SAGE, "llm", "serve", "--pd", "1:1", "--kv-transport", "nixl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == BackendUnavailable.exit_code
    assert "transport 'nixl' is not ready (missing-requirement)" in done.stderr
    assert "pip install 'sage-infer-nixl[cu12]'" in done.stderr
