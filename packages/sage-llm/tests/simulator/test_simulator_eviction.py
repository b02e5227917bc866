"""Eviction policies of installed KV stores in the simulator, found by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sage_infer.cli.main import main
from sage_infer.discovery import discover
from sage_llm.simulator.eviction import LeastRecentlyUsed, eviction_of

CHATS = "sessions:requests=300,turns=4,gap_s=20,rate=2,block=64,system=128,prompt=400,output=60"
PLUGIN = '''
from sage_infer import KVStoreSpec, hookimpl
from sage_infer.errors import ConfigError

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_kv_stores():
    return [
        KVStoreSpec(name="odd", factory="evicting:none", eviction="evicting:policy"),
        KVStoreSpec(name="without", factory="evicting:none"),
    ]


class Newest:
    """The block that was used last leaves first."""

    def __init__(self):
        self.keys = {}
        self.prompts = 0

    def asked(self, keys, now):
        self.prompts += 1

    def add(self, key, now):
        self.keys[key] = now

    def used(self, key, now):
        self.keys[key] = now

    def remove(self, key):
        del self.keys[key]

    def order(self, now):
        return iter(sorted(self.keys, key=self.keys.get, reverse=True))


def policy(name, page_size):
    if name != "newest":
        raise ConfigError(f"policy must be newest, got {name!r}")
    return Newest()
'''

Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simulate:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sage", "llm", "simulate", CHATS, "-n", "2", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A KV store with the policy ``newest`` is installed."""
    info = tmp_path / "site" / "evicting-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evicting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nevicting = evicting\n")
    (info.parent / "evicting.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(info.parent)
    discover.cache_clear()
    yield
    monkeypatch.delitem(__import__("sys").modules, "evicting", raising=False)
    discover.cache_clear()


def hits(simulate: Simulate, *arguments: str) -> dict[str, Any]:
    code, out, err = simulate("--compare", "kv-cost", "--blocks", "200", "--json", *arguments)
    assert code == 0, err
    return {result["settings"]["eviction"]: result for result in json.loads(out)["results"]}


@pytest.mark.usefixtures("store")
def test_a_policy_of_a_store_decides(simulate: Simulate) -> None:
    found = hits(simulate, "--sweep", "eviction=lru,newest")
    assert list(found) == ["lru", "newest"]
    assert all(result["finished"] == 300 for result in found.values())
    assert found["lru"]["hit"] != found["newest"]["hit"]
    assert found["lru"] == {**hits(simulate)["lru"], **timed(found["lru"])}  # the default


@pytest.mark.usefixtures("store")
def test_tiers_have_policies_of_their_own(simulate: Simulate) -> None:
    found = hits(simulate, "--dram", "150", "--sweep", "eviction=lru,lru/newest,newest/lru,newest")
    lower = [result["lower"] for result in found.values()]
    assert lower[0] != lower[1]
    assert len({result["saved"] for result in found.values()}) > 2
    code, out, _ = simulate("--compare", "kv-cost", "--dram", "150", "--sweep", "eviction=lru,lru/newest")
    assert code == 0
    assert [re.split(r"  +", line)[0] for line in out.splitlines()[2:4]] == [
        "kv-cost, eviction lru",
        "kv-cost, eviction lru/newest",
    ]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("arguments", [["--eviction", "oldest"], ["--sweep", "eviction=lru/oldest"]])
def test_unknown_policies_are_refused(simulate: Simulate, arguments: list[str]) -> None:
    code, _, err = simulate(*arguments)
    assert code == 2
    assert "no eviction policy 'oldest': the simulator has lru; " in err
    assert "policy must be newest, got 'oldest'" in err


def test_without_stores_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sage_infer.errors import InvalidRequest

    monkeypatch.setattr("sage_llm.simulator.eviction.list_plugins", lambda kind: [])
    with pytest.raises(InvalidRequest, match="pip install sage-infer-kvstore"):
        eviction_of("reuse", 0, 512)
    assert isinstance(eviction_of("lru/reuse", 0, 512), LeastRecentlyUsed)


def timed(result: dict[str, Any]) -> dict[str, Any]:
    """What depends on the machine."""
    return {name: result[name] for name in ("cpu_s", "series")}
