"""`sage llm serve` with API keys: they share no KV block, a quota is refused, and a greedy one delays itself only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sage_infer_serve.http.auth import KeyLimits, add_key
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, served

pytestmark = pytest.mark.long

BATCH = 4
PLACES = BATCH + 2  # requests that the control plane sends to an instance
MANY, FEW = 48, 4
CONTENT = " ".join(f"Lighthouse number {n} stands on a rock." for n in range(24))
CONFIG = """
llm: {tenants: {ann: {max_requests: 1}, "*": {max_requests: 64}}}
serve: {target_wait_s: 3600}
"""


def opened(url: str, key: str, content: str, max_tokens: int, **fields: Any) -> Any:
    body = {
        "model": "smollm2-135m", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens,
        "temperature": 0, **fields,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    return urllib.request.urlopen(request, timeout=GUARD_S)


def chat(url: str, key: str, content: str, max_tokens: int = 2) -> Any:
    with opened(url, key, content, max_tokens) as answer:
        return json.load(answer)


def check_fair_share(url: str, *, greedy: str, modest: str) -> None:
    """While a few requests of one key are served, a key with many of them gets no more than as many, and its batch."""
    ended = []

    def ask(key: str, number: int) -> None:
        with opened(url, key, f"Count to {number}.", 12, ignore_eos=True) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 12
        ended.append(key)

    with ThreadPoolExecutor(MANY + FEW) as threads:
        asked = [threads.submit(ask, greedy, number) for number in range(MANY)]
        while waiting(url, greedy) < MANY // 2:
            assert len(ended) < MANY // 4, "they ended before so many were sent"
        before = len(ended)
        few = [threads.submit(ask, modest, number) for number in range(FEW)]
        for one in (*few, *asked):
            one.result()
    last = max(place for place, key in enumerate(ended) if key == modest)
    during = ended[before:last].count(greedy)
    # Those on their way at that time, as many as of the other key, two that the gap of service allows, and a batch.
    assert during <= PLACES + FEW + 2 + BATCH


def waiting(url: str, key: str) -> float:
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("sage_llm_waiting_requests"))


def test_keys_share_no_block_and_have_quotas(
    smollm2: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    (tmp_path / "sage_infer.yaml").write_text(CONFIG)
    keys = [add_key(tmp_path / "keys.json", name, KeyLimits()) for name in ("ann", "bob", "cid")]
    words = [
        "llm", "serve", "-m", "smollm2-135m", "-o", "kv_cache_gb=0.25", "-o", f"max_batch_size={BATCH}",
        "--keys-file", str(tmp_path / "keys.json"),
    ]  # fmt: skip
    environment = {RUN_FOLDER_VARIABLE: str(folder), "SAGE_INFER_CONFIG": str(tmp_path / "sage_infer.yaml")}
    with served(tmp_path, *words, environment=environment) as (_, ready):
        url = ready["url"]
        answers = [chat(url, key, CONTENT) for key in (keys[0], keys[0], keys[1], keys[1])]
        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        prompt = answers[0]["usage"]["prompt_tokens"]
        assert cached[0] == cached[2] == 0, "a block was shared"
        assert cached[1] == cached[3] > prompt // 2, "a prompt of the same key was computed again"
        assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
        with opened(url, keys[0], "Hello", 400, stream=True, ignore_eos=True) as stream:
            assert stream.readline().startswith(b"data:")
            with pytest.raises(urllib.error.HTTPError) as refused:
                chat(url, keys[0], "Hello", max_tokens=100)
            assert refused.value.code == 429
            assert int(refused.value.headers["retry-after"]) >= 1
            assert "tenant 'ann' has 1 open request; its quota is 1" in refused.value.read().decode()
            assert chat(url, keys[1], "Hello", max_tokens=100)["usage"]["completion_tokens"] > 0
        check_fair_share(url, greedy=keys[1], modest=keys[2])
