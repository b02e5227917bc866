from __future__ import annotations

import importlib.metadata
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sage_infer.discovery import Registry
from sage_infer.schemas import DecodeState, GuidedDecoding, KVCacheSchema, KVChunk, SamplingParams

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

PARTS = """
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import HardwareProfile
class Detector:
    def detect(self):
        return HardwareProfile()
class Executor:
    def __init__(self, *, workers=1):
        self.workers = workers
        if workers == 0:
            raise UnsupportedFeature("no workers")
    async def start(self, spec): ...
    async def adopt(self): ...
    async def close(self): ...
class Mover:
    def __init__(self, settings):
        self.settings = settings
    def can_reach(self, source, target): ...
    def register(self, region): ...
    async def execute(self, plan, *, on_step=None): ...
    async def close(self): ...
class Place:
    def __init__(self, *, port=0):
        self.port = port
    def publish(self, chunks, buffers): ...
    def reserve(self, chunks): ...
    def open(self, location): ...
    def withdraw(self, locations): ...
    def close(self): ...
class Store:
    def __init__(self, schema, model_id):
        raise TypeError("their own")
class Codec:
    pass
class Backend: ...
class Section: ...
TEXT = ""
def find(name): ...
def command(): ...
"""
"""Module ``parts`` of a site: one thing of each kind."""


@pytest.fixture
def kv_schema() -> KVCacheSchema:
    """SmolLM2-135M's geometry in 8 bits."""
    return KVCacheSchema.from_preset("int8", num_layers=30, num_heads=3, head_dim=64)


@pytest.fixture
def state(kv_schema: KVCacheSchema) -> DecodeState:
    chunk = KVChunk(
        chunk_id="0" * 32,
        request_id="r",
        layer_start=0,
        layer_end=30,
        token_start=0,
        token_end=2,
        kv_schema=kv_schema,
        nbytes=kv_schema.bytes_per_page,
    )
    return DecodeState(
        request_id="r",
        model_id="m",
        instance_id="i",
        prompt_token_ids=(1, 2),
        output_token_ids=(3,),
        params=SamplingParams(guided=GuidedDecoding(choice=("yes", "no"))),
        seed=3,
        kv_schema=kv_schema,
        chunks=(chunk,),
    )


class Site:
    """A folder of installed distributions, each with a plug-in module; nothing else is installed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, source: str, *, dist: str | None = None, module: str | None = None) -> None:
        """A distribution whose one entry point ``name`` names a module with this source."""
        dist, module = dist or f"{name}-dist", module or f"{name}_module"
        info = self.folder / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sage_infer.backends]\n{name} = {module}\n")
        if source:
            (self.folder / f"{module}.py").write_text(source)

    def registry(self, *, disabled: Iterable[str] = ()) -> Registry:
        distributions = sorted(
            importlib.metadata.distributions(path=[str(self.folder)]), key=lambda d: d.name
        )
        points = [point for d in distributions for point in d.entry_points]
        return Registry(points, frozenset(disabled))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "engine.py").write_text("class Backend: ...\nclass Detector: ...\n")
    (tmp_path / "parts.py").write_text(PARTS)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


class Sage:
    """Runs the ``sage`` command in a process of its own, with the toy plug-in installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")},
            "PYTHONPATH": str(Path(__file__).parent / "toy"),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "SAGE_INFER_INFERENCE_BACKEND": "toy",
            "SAGE_INFER_INFERENCE_EMBEDDING_BACKEND": "toy-embedding",
        }

    def __call__(
        self, *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sage_infer.cli.main", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=600, cwd=self.folder,
            env=self.environment | environment,
        )  # fmt: skip

    def json(self, *arguments: str, **environment: str) -> Any:
        done = self(*arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def fails(self, *arguments: str, code: int, stdin: str = "", **environment: str) -> str:
        """The one line of a clean failure: nothing on stdout, no traceback, the expected exit code."""
        done = self(*arguments, stdin=stdin, **environment)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        lines = [line for line in done.stderr.splitlines() if not line.endswith("…")]
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert done.stdout == ""
        return lines[0]


@pytest.fixture
def sage(tmp_path: Path) -> Sage:
    return Sage(tmp_path)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """The head of a GGUF file: enough to be taken for one by the core, which never reads further."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 20) + b"general.architecture"
    path = tmp_path / "toy.gguf"
    path.write_bytes(head + struct.pack("<IQ", 8, 5) + b"llama")
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    (folder / "modules.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


@pytest.fixture
def cross_encoder(encoder: Path) -> Path:
    (encoder / "modules.json").unlink()
    (encoder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    return encoder
