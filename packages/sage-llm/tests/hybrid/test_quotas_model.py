"""`sage llm serve` with quotas of KV: a greedy tenant stays below its ceiling, and a reserve returns by pausing."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sage_infer_serve.http.auth import KeyLimits, add_key
from sage_llm.commands.control import ask
from sage_llm.commands.tables import decision_lines, status_lines
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, served

pytestmark = pytest.mark.long

TOKENS = 48  # of each output
GREEDY, GOLD = 8, 4
CEILING, RESERVED = 510, 400  # five and four requests
CONFIG = f"""
llm: {{quotas: {{greedy: {{ceiling: {CEILING}}}, gold: {{reserved: {RESERVED}}}}}}}
serve: {{target_wait_s: 3600}}
"""


def chat(url: str, key: str, number: int, **fields: Any) -> dict[str, Any]:
    body = {
        "model": "smollm2-135m", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **fields,
        "messages": [{"role": "user", "content": f"Write a short story about lighthouse number {number}."}],
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        found: dict[str, Any] = json.load(answer)
    assert found["usage"]["completion_tokens"] == TOKENS
    return found


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_quotas_of_kv(
    smollm2: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv("SAGE_INFER_CONFIG", str(tmp_path / "sage_infer.yaml"))
    (tmp_path / "sage_infer.yaml").write_text(CONFIG)
    greedy, gold = (add_key(tmp_path / "keys.json", name, KeyLimits()) for name in ("greedy", "gold"))
    words = [
        "llm", "serve", "-m", "smollm2-135m", "--replicas", "2", "-o", "kv_cache_gb=0.016",
        "-o", "max_sequence_length=128", "--keys-file", str(tmp_path / "keys.json"),
    ]  # fmt: skip
    with served(tmp_path, *words) as (_, ready), ThreadPoolExecutor(GREEDY + GOLD) as threads:
        url, port = ready["url"], int(ready["url"].rpartition(":")[2])

        def quota(tenant: str) -> dict[str, int]:
            time.sleep(0.02)  # the server has other work
            row = ask(port, "status")["quotas"].get(tenant, {"used": 0, "borrowed": 0, "waiting": 0})
            assert tenant != "greedy" or row["used"] <= CEILING
            return dict(row)

        def batch() -> list[Any]:
            return [threads.submit(chat, url, greedy, n, service_tier="batch") for n in range(GREEDY)]

        asked = batch()
        while not quota("greedy")["waiting"]:
            assert not all(one.done() for one in asked), "all of them ran together"
        while not all(one.done() for one in asked):
            quota("greedy")
        expected = [text(one.result()) for one in asked]
        for _ in range(8):  # the greedy ones may end before the others arrive
            asked = batch()
            while not quota("greedy")["borrowed"]:
                assert not all(one.done() for one in asked), "no reserve was lent"
            answers = list(threads.map(lambda n: chat(url, gold, n), range(GOLD)))
            assert [text(answer) for answer in answers] == expected[:GOLD]
            found = [one.result() for one in asked]
            assert [text(one) for one in found] == expected
            receipts = [ask(port, "explain", request=one["id"]) for one in found]
            if any(receipt["quota"]["pauses"] for receipt in receipts):
                break
        status = ask(port, "status")
        assert status["quotas"]["gold"]["taken_back"] > 0
        shown = "\n".join(line for receipt in receipts for line in decision_lines(receipt))
        assert re.search(r"paused (1 time|[2-9] times) before", shown), shown
        mine = ask(port, "explain", request=answers[0]["id"])
        assert "its KV is within its reserve" in "\n".join(decision_lines(mine))
        assert any(line.startswith("gold") and "times" in line for line in status_lines(status))
