"""``sage llm serve --backend vllm`` with a disk below memory: KV of a request that waits moves to memory meanwhile."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_llm.commands.control import ask
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, served

pytest.importorskip("vllm")
pytest.importorskip("sage_infer_kvstore", reason="it brings the store `tiered`")

MODEL, PAGE = "smollm2-135m", 32
STORE = {
    "store": "tiered",
    "wait_s": 120,
    "upper": {"capacity_gb": 0.02},
    "lower": {"store": "ssd", "capacity_gb": 0.2},
}
# One request at a time, and no pages but those of the store. float32, so that equal requests have equal answers.
OPTIONS = (
    "dtype=float32", "eager=true", "kv_cache_gb=0.5", "max_sequence_length=512", "max_batch_size=1",
    "prefix_caching=false", "kv_store_wait_s=300",
)  # fmt: skip
BUSY = 4
STORY, *OTHERS = (
    " ".join(f"{word} number {n} stands on a rock." for n in range(count))
    for word, count in (("House", 18), ("Tower", 30), ("Ship", 30))
)


def chat(url: str, text: str, tokens: int) -> dict[str, Any]:
    body = {
        "model": MODEL, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "messages": [{"role": "user", "content": text}],
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def cached(found: dict[str, Any]) -> int:
    return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])


def stored(url: str, text: str) -> dict[str, Any]:
    """The answer to a text, all of whose pages are then in the store, and in memory."""
    first = chat(url, text, 4)
    while cached(again := chat(url, text, 4)) < pages_of(first) * PAGE:
        assert answer_of(again) == answer_of(first)
    return first


def pages_of(found: dict[str, Any]) -> int:
    return (int(found["usage"]["prompt_tokens"]) - 1) // PAGE


def answer_of(found: dict[str, Any]) -> tuple[str, int]:
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]


def test_kv_moves_up_while_a_request_waits_for_vllm(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))
    add_model(model_specs()[MODEL])
    store = {**STORE, "lower": {**STORE["lower"], "path": str(tmp_path / "blocks")}}  # type: ignore[dict-item]
    options = [word for option in (*OPTIONS, f"kv_store={json.dumps(store)}") for word in ("-o", option)]
    with (
        served(tmp_path, "llm", "serve", "-m", MODEL, "--backend", "vllm", *options) as (_, ready),
        ThreadPoolExecutor(BUSY + 1) as threads,
    ):
        url, port = ready["url"], int(ready["url"].rpartition(":")[2])
        first = stored(url, STORY)
        for text in OTHERS:  # memory holds thirteen pages, so those of the story are on the disk only
            assert pages_of(stored(url, text)) > pages_of(first)
        receipt: dict[str, Any] = {}
        for _ in range(8):  # the others may end before the story arrives
            others = [threads.submit(chat, url, f"Count to {n}.", 64) for n in range(BUSY)]
            while not ask(port, "status")["requests"]["waiting"]:
                assert not all(one.done() for one in others), "no request waited"
                time.sleep(0.02)
            again = chat(url, STORY, 4)
            assert answer_of(again) == answer_of(first)
            receipt = ask(port, "explain", request=again["id"])
            assert [one.result() for one in others]
            if receipt["prefetch"]:
                break
        pages = pages_of(first)
        assert receipt["prefetch"] == {"instance": f"{MODEL}/0", "pages": pages}
        assert cached(again) == pages * PAGE
        with urllib.request.urlopen(f"{url}/metrics", timeout=GUARD_S) as answer:
            (moved,) = re.findall(
                r"^sage_llm_prefetched_pages_total (\S+)$", answer.read().decode(), re.MULTILINE
            )
        assert float(moved) >= pages
