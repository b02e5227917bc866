"""KV that one engine has saved is converted by ``sage infer kv convert``, and used by another engine."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer.schemas import SamplingParams

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("openvino") is None,
    reason="needs vLLM and OpenVINO in one environment; `hatch run vllm.0.32:across` has both",
)

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
TEXT = (
    "The engine reads a page of keys and values for every token that it computes, and writes one of its own. "
    * 12
)
OPTIONS: dict[str, dict[str, Any]] = {
    "vllm": {
        "dtype": "float32", "eager": True, "kv_cache_gb": 0.5, "max_sequence_length": 1024, "prefix_caching": False,
        "kv_schema": {"page_size": 32},
    },
    "openvino": {"weight_format": "f32", "kv_cache_gb": 0.25},
}  # fmt: skip


async def answered(backend: str, store: Path, prompt: str | list[int]) -> tuple[list[int], list[int], int]:
    """Prompt, greedy tokens and cached tokens of a new engine over a store."""
    setting = {"store": "ssd", "path": str(store), "capacity_blocks": 64}
    options = {**OPTIONS[backend], "kv_store": setting, "kv_store_wait_s": 60.0}
    async with open_backend(backend, model="smollm2-135m", serves="llm", **options) as engine:
        tokens = list(await engine.tokenize(prompt)) if isinstance(prompt, str) else prompt
        (stream,) = await engine.generate(tokens, PARAMS)
        found = [token async for delta in stream for token in delta.token_ids]
        assert stream.usage is not None
        return tokens, found, stream.usage.cached_tokens


def test_saved_by_one_engine_used_by_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: each engine computes a prompt, and then gets it from the converted KV of the other."""
    # One thread: threads that wait for each other by spinning are slow on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    add_model(model_specs()["smollm2-135m"])
    prompt: str | list[int] = TEXT
    own = {}
    for backend in OPTIONS:
        prompt, own[backend], cached = asyncio.run(answered(backend, tmp_path / backend, prompt))
        assert cached == 0, backend
        # A store of the same format without blocks, for those of the other engine.
        shutil.copytree(
            tmp_path / backend, tmp_path / f"{backend}-next", ignore=shutil.ignore_patterns("segment-*.kv")
        )
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    for source, target in (("vllm", "openvino"), ("openvino", "vllm")):
        (space,) = (tmp_path / f"{target}-next").iterdir()
        command = [
            sys.executable, "-m", "sage_infer.cli.main", "infer", "kv", "convert", tmp_path / source, space,
            "--prompts", tmp_path / "prompts.jsonl", "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["found_prompts"] == 1, (source, target)
        _, found, cached = asyncio.run(answered(target, tmp_path / f"{target}-next", prompt))
        assert cached >= len(prompt) - 128, f"{target}: {cached} of {len(prompt)} tokens"
        assert found == own[target], target
