"""The plug-in with and without vLLM; nothing imports vLLM before it is used."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sage_infer.discovery import Registry, backend_info
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    EngineDead,
    ModelFileError,
    ModelNotFound,
)
from sage_infer.schemas import ModelDescriptor, QuantizationProfile, SamplingParams
from sage_infer_testing import PluginContract
from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.embedding_backend import VLLMEmbeddingBackend
from sage_infer_vllm.engine.stats import EngineCounters
from sage_infer_vllm.models import prepare
from sage_infer_vllm.platform import Platform, QuantizationMethod
from vllm_toys import have_vllm

MODEL = ModelDescriptor(model_id="m", model_type="llm", model_path="/m")
NOBODY = Platform(backend_name="nobody", engine={"no-such-vllm": ">=1"})

PROBE = """
import json, sys
import sage_infer.cli.main
sys.argv = ["sage", "infer", "backend", "list", "--json"]
try:
    sage_infer.cli.main.main()
except SystemExit:
    pass
import sage_infer_vllm.backend, sage_infer_vllm.embedding_backend
print(json.dumps(sorted(sys.modules)))
"""


class TestPlugin(PluginContract):
    module = "sage_infer_vllm.plugin"


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 300))


def test_listing_and_importing_the_backends_loads_no_engine() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(child.stdout.splitlines()[-1])}
    assert not loaded & {"vllm", "torch", "transformers", "numpy"}


@pytest.mark.parametrize(("nodes", "extra"), [((), "cpu"), (("nvidia0",), "cuda")])
def test_the_list_shows_the_build_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: tuple[str, ...], extra: str
) -> None:
    import attrs
    from sage_infer_vllm import plugin

    for node in nodes:
        (tmp_path / node).touch()
    specs = [
        attrs.evolve(
            spec, requires={"no-such-a | no-such-b": ">=1"}, device_nodes=(f"{tmp_path}/nvidia[0-9]*",)
        )
        for spec in plugin.sage_infer_backends()
    ]
    monkeypatch.setattr(plugin, "sage_infer_backends", lambda: specs)
    plugin.sage_infer_backends.sage_infer_impl = {  # type: ignore[attr-defined]  # what the decorator sets
        "wrapper": False, "hookwrapper": False, "optionalhook": False, "tryfirst": False, "trylast": False,
        "specname": None,
    }  # fmt: skip
    entry = importlib.metadata.EntryPoint("vllm", "sage_infer_vllm.plugin", "sage_infer.backends")
    rows = backend_info(Registry((entry,)))
    assert [(row.name, row.state) for row in rows] == [
        ("vllm", "missing-requirement"), ("vllm-embedding", "missing-requirement"),
    ]  # fmt: skip
    for row in rows:
        assert row.reason == "needs no-such-a>=1 | no-such-b>=1 (not installed)"
        assert row.fix == f"pip install 'sage-infer-vllm[{extra}]'"


# --- before the engine


@pytest.mark.skipif(have_vllm(), reason="vLLM is installed here")
def test_a_start_without_vllm_shows_the_install_command() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"vLLM is not installed; pip install 'vllm>=0\.13,<0\.34' or"
    ):
        run(VLLMBackend(MODEL).start())


@pytest.mark.parametrize("kind", [VLLMBackend, VLLMEmbeddingBackend])
def test_before_start_and_after_close(kind: Any) -> None:
    async def main() -> None:
        backend = type("Toy", (kind,), {"platform": NOBODY})(MODEL)
        assert (await backend.health()).status == "starting"
        assert backend.stats().running == 0
        with pytest.raises(EngineDead, match="not started; call start"):
            backend.get_capability()
        with pytest.raises(BackendUnavailable, match="'nobody' cannot start: vLLM is not installed"):
            await backend.start()
        await backend.close()
        await backend.close()
        assert (await backend.health()).reason == "the backend was closed"
        with pytest.raises(EngineDead, match="was closed; open a new one"):
            await backend.start()
        with pytest.raises(EngineDead):
            await backend.sleep()

    run(main())


def test_work_before_start_is_refused() -> None:
    async def main() -> None:
        backend = VLLMBackend(MODEL)
        with pytest.raises(EngineDead):
            await backend.generate("a", SamplingParams())
        with pytest.raises(EngineDead):
            await backend.prefill("a", request_id="r")
        with pytest.raises(EngineDead):
            await backend.render_chat([{"role": "user", "content": "a"}])
        with pytest.raises(EngineDead):
            backend.describe()
        report = backend.report()
        assert (report.state, report.seq, report.running) == ("starting", 1, 0)
        await backend.abort("unknown")

    run(main())


def test_a_profile_before_start_is_checked_against_the_platform_table(tmp_path: Path) -> None:
    vendor = Platform(
        backend_name="v",
        engine={"vllm": ""},
        quantization=(QuantizationMethod(name="q", weight_bits=8, online=True),),
    )
    model = ModelDescriptor(model_id="m", model_type="llm", model_path=str(tmp_path))
    backend = type("Toy", (VLLMBackend,), {"platform": vendor})(model)
    backend.load_quant_profile(QuantizationProfile(weight_bits=8))
    assert backend._quantization.method == "q"
    with pytest.raises(Exception, match="v cannot quantize to 4-bit weights"):
        backend.load_quant_profile(QuantizationProfile(weight_bits=4))
    assert backend._quantization.method == "q"  # the refused one changed nothing


# --- models


def test_folders_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 64)
    found = prepare.loadable_folder(tmp_path, cache_dir=None, progress=lambda stage, share: None)
    assert found == tmp_path.resolve()


def test_missing_and_incomplete_models(tmp_path: Path) -> None:
    def folder(path: Path) -> Path:
        return prepare.loadable_folder(path, cache_dir=tmp_path / "cache", progress=lambda stage, share: None)

    with pytest.raises(ModelFileError, match="no such file or folder"):
        folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    (tmp_path / "model-1.safetensors").write_bytes(b"0" * 64)
    with pytest.raises(ModelFileError, match=r"1 of 2 weight files missing: model-2\.safetensors"):
        folder(tmp_path)


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def convert(source: Path, folder: Path, progress: Any) -> None:
        calls.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setitem(sys.modules, "sage_infer_vllm.models.gguf_folder", SimpleNamespace(convert=convert))
    source, cache = tmp_path / "m.gguf", tmp_path / "cache"
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
    source.write_bytes(head)
    first = prepare.loadable_folder(source, cache_dir=cache, progress=lambda stage, share: None)
    assert prepare.loadable_folder(source, cache_dir=cache, progress=lambda stage, share: None) == first
    assert calls == [source.resolve()]
    source.write_bytes(head + b"more")
    second = prepare.loadable_folder(source, cache_dir=cache, progress=lambda stage, share: None)
    assert second != first
    assert not first.exists()
    with pytest.raises(ConfigError, match="cannot write the prepared model"):
        prepare.loadable_folder(source, cache_dir=source, progress=lambda stage, share: None)


def test_prepare_reports_its_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 64)
    seen: list[tuple[str, float]] = []
    model = ModelDescriptor(model_id="m", model_type="llm", model_path=str(tmp_path))
    prepare.prepare(model, lambda stage, share: seen.append((stage, share)))
    assert seen == [("ready", 1.0)]


def test_an_adapter_folder_must_be_one(tmp_path: Path) -> None:
    from sage_infer_vllm.engine.opening import adapter_folder

    with pytest.raises(ModelNotFound, match=r"adapter 'x': .* has no adapter_config\.json"):
        adapter_folder("x", str(tmp_path))


# --- statistics


def test_counters_sum_vllms_reports() -> None:
    counters = EngineCounters()
    scheduler = SimpleNamespace(
        num_running_reqs=2, num_waiting_reqs=1, num_skipped_waiting_reqs=1, kv_cache_usage=0.25,
        prefix_cache_stats=SimpleNamespace(queries=10, hits=4),
    )  # fmt: skip
    step = SimpleNamespace(
        num_prompt_tokens=14,
        prompt_token_stats=SimpleNamespace(computed=10),
        num_generation_tokens=2,
        num_preempted_reqs=1,
    )
    counters.record(scheduler, step)
    counters.record(scheduler, None)
    counters.record(None, step)
    assert (counters.running, counters.waiting, counters.kv_usage) == (2, 2, 0.25)
    assert (counters.prompt_tokens, counters.output_tokens, counters.preemptions) == (20, 4, 2)
    assert (counters.cache_queries, counters.cache_hits) == (20, 8)
    assert counters.rates() == (2.0, 0.4)
    counters.clear()
    assert (counters.prompt_tokens, counters.rates()) == (0, (0.0, 0.0))
