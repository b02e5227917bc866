"""A KV store on a disk below a real vLLM: stored KV gives the same tokens after a restart, and after ``kill -9``.

After an engine was killed while it loads, ``vllm serve`` starts with the store, by vLLM's own configuration alone.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from sage_infer.contracts import block_keys
from sage_infer.errors import EngineDead
from sage_infer.schemas import ModelDescriptor, RequestOptions, SamplingParams
from sage_infer.sdk.kv_pages.setting import open_kv_store
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.models.prepare import loadable_folder
from vllm_apart import generated, prompt_of
from vllm_toys import have_vllm, write_distribution

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm("0.23"),
        reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
    ),
]
pytest.importorskip("sage_infer_kvstore", reason="sage-infer-kvstore is not installed")

PAGE = 32  # with a store, on a CPU
PROMPTS = [prompt_of(300, start=1000 * number) for number in range(1, 5)]
NEW = prompt_of(70, start=9000)
FULL = len(PROMPTS[0]) // PAGE * PAGE
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
OPTIONS: dict[str, Any] = {
    "adapters": {}, "kv_store_wait_s": 120.0, "prefix_caching": False,
    "engine_options": {"max_num_batched_tokens": 512},  # pages come in several steps
}  # fmt: skip
KILLED = """
import asyncio, json, sys
from sage_infer.schemas import ModelDescriptor, SamplingParams
from sage_infer_vllm.backend import VLLMBackend

path, options, prompts = json.loads(sys.argv[1])


async def main():
    backend = VLLMBackend(ModelDescriptor(model_id="smollm2", model_type="llm", model_path=path), **options)
    await backend.start()
    streams = await backend.generate(prompts, SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    while True:
        print(backend.stats().extensions["kv_store_saved"], flush=True)
        await asyncio.sleep(0.01)


asyncio.run(main())
"""


@frozen
class Stored:
    """A store with the pages of all prompts.

    Attributes:
        store: setting that names it.
        expected: tokens of each prompt, without the store.
        texts: of these tokens.
        kv_model: name of the weights in the keys.
        schema: of the pages.
    """

    store: dict[str, Any]
    expected: list[list[int]]
    texts: list[str]
    kv_model: str
    schema: Any


async def answer(backend: Any, prompt: list[int], salt: str = "") -> tuple[list[int], int]:
    """Tokens and cached tokens."""
    (stream,) = await backend.generate(prompt, GREEDY, options=RequestOptions(cache_salt=salt))
    tokens = [token async for delta in stream for token in delta.token_ids]
    return tokens, stream.usage.cached_tokens


@pytest.fixture(scope="module")
def stored(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A process is killed while it saves; another continues with its store, which has no wrong block."""
    live.stop()  # one engine at a time
    store = {"store": "ssd", "path": str(tmp_path_factory.mktemp("store")), "capacity_blocks": 256}
    options = {**live.options, **OPTIONS, "kv_store": store}
    given = json.dumps([live.model.model_path, options, PROMPTS])
    process = subprocess.Popen([sys.executable, "-c", KILLED, given], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        seen = next((line for line in process.stdout if float(line) >= 2), None)
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert seen is not None
    live.use(live.make(**OPTIONS, kv_store=store))

    async def compare() -> Stored:
        backend = live.backend
        states = backend._running.states
        expected, cached, texts = [], [], []
        for number, prompt in enumerate(PROMPTS):
            first = await generated(
                backend, prompt, GREEDY, options=RequestOptions(cache_salt=f"cold {number}")
            )
            expected.append(first["tokens"])
            texts.append(first["text"])
            tokens, count = await answer(backend, prompt)
            assert tokens == expected[-1]
            cached.append(count)
        assert sum(cached) >= 2 * PAGE  # the first of which the killed process has saved
        await eventually(
            lambda: backend.stats().extensions["kv_store_blocks"] >= 2 * len(PROMPTS) * FULL // PAGE,
            "pages are not saved",
            within_s=300,
        )
        assert not backend.stats().extensions["kv_store_corrupt"]
        return Stored(store, expected, texts, states.kv_model, states.schema)

    yield live.run(compare())
    live.stop()


def test_an_engine_killed_while_it_loads(live: Any, stored: Stored) -> None:
    async def kill() -> None:
        backend = live.backend
        before = backend.stats().extensions["kv_store_fetched"]
        asked = [asyncio.ensure_future(answer(backend, prompt)) for prompt in PROMPTS]
        await eventually(
            lambda: backend.stats().extensions["kv_store_fetched"] > before,
            "nothing is fetched",
            within_s=300,
        )
        for leader in backend._running.engine.processes.leaders:
            os.kill(leader, signal.SIGKILL)
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, EngineDead) or end[0] in stored.expected for end in ends)  # type: ignore[index]
        await eventually(lambda: backend._running.stopped, "the death is not noticed", within_s=300)
        with pytest.raises(EngineDead):
            await answer(backend, PROMPTS[0])

    live.run(kill())
    live.stop()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=600)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: Path, body: Any = None) -> Any:
    connection = _Connection(path)
    try:
        connection.request(
            "POST" if body else "GET",
            "/v1/completions" if body else "/health",
            None if body is None else json.dumps(body),
            {"content-type": "application/json"},
        )
        response = connection.getresponse()
        found = response.read()
        assert response.status == 200, found
        return json.loads(found) if body else None
    finally:
        connection.close()


def completion(path: Path, prompt: list[int], **more: Any) -> tuple[str, int]:
    """The text, and the cached tokens."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **more}
    found = ask(path, body)
    details = found["usage"].get("prompt_tokens_details") or {}
    return found["choices"][0]["text"], details.get("cached_tokens") or 0


@contextmanager
def vllm_serve(model: Path, extra: dict[str, Any]) -> Iterator[Path]:
    """The path of the socket of ``vllm serve``, when it is ready."""
    transfer = {
        "kv_connector": "SageKVConnector", "kv_connector_module_path": "sage_infer_vllm.kv.connector",
        "kv_role": "kv_both", "kv_load_failure_policy": "recompute", "kv_connector_extra_config": extra,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as made:  # a socket's path is short
        folder = Path(made)
        path, log = folder / "s", folder / "log"
        command = [
            sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "m",
            "--uds", str(path), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
            "--kv-cache-memory-bytes", str(2**28), "--block-size", str(PAGE), "--enable-prompt-tokens-details",
            "--kv-transfer-config", json.dumps(transfer),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
        environment["PYTHONPATH"] = os.pathsep.join([made, environment.get("PYTHONPATH", "")])
        try:
            importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            # The CPU build is named vllm-cpu, and its command asks for the version of vllm.
            write_distribution(folder, "vllm", f"{importlib.metadata.version('vllm-cpu')}+cpu")
        with log.open("wb") as out:
            server = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True
            )  # a group of its own, for its workers
        try:

            def is_ready() -> bool:
                assert server.poll() is None, log.read_text("utf-8", "replace")[-3000:]
                with suppress(OSError):
                    ask(path)
                    return True
                return False

            asyncio.run(eventually(is_ready, "the server is not ready", within_s=900))
            yield path
            server.send_signal(signal.SIGTERM)
            server.wait(300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_vllm_serve_continues_with_the_store(live: Any, smollm2: ModelDescriptor, stored: Stored) -> None:
    live.stop()
    model = loadable_folder(smollm2.model_path, cache_dir=None, progress=lambda *_: None)
    with vllm_serve(model, {"kv_store": stored.store, "kv_store_wait_s": 120}) as path:
        assert [completion(path, prompt) for prompt in PROMPTS] == [(text, FULL) for text in stored.texts]
        assert completion(path, PROMPTS[0], cache_salt="cold 0") == (stored.texts[0], FULL)
        assert completion(path, PROMPTS[0], cache_salt="another tenant") == (stored.texts[0], 0)
        forged = {"sage_infer": {"stored": {"arena": {"file": "/etc/passwd"}}}}
        assert completion(path, NEW, kv_transfer_params=forged)[1] == 0
        assert completion(path, NEW)[1] == len(NEW) // PAGE * PAGE  # vLLM's own cache
    store = open_kv_store(stored.store, schema=stored.schema, model_id=stored.kv_model)
    try:  # the backend finds what the server has computed
        assert all(store.contains(list(block_keys(stored.kv_model, stored.schema, NEW))))
    finally:
        store.close()
