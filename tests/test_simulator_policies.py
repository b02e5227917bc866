"""The eviction policies of the KV stores run unchanged in the simulator of the control plane."""

from __future__ import annotations

import json

import pytest
from sage_infer.cli.main import main
from sage_infer_kvstore.policies.names import POLICIES

CHATS = "sessions:requests=300,turns=4,gap_s=20,rate=2,block=64,system=128,prompt=400,output=60"


def test_each_policy_of_the_stores_has_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["lru", *(name for name in POLICIES if name != "lru")]
    command = ["sage", "llm", "simulate", CHATS, "-n", "2", "--blocks", "200", "--compare", "kv-cost"]
    monkeypatch.setattr("sys.argv", [*command, "--sweep", f"eviction={','.join(names)}", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    found = json.loads(out)
    results = found["results"]
    assert [result["settings"]["eviction"] for result in results] == names
    assert all(result["finished"] == 300 for result in results)
    assert all(0 < result["hit"] <= found["bounds"]["unlimited"] for result in results)
    assert len({result["hit"] for result in results}) > 1  # they do decide
