"""``sage infer kv``: what is stored, whether it is whole, and how to be rid of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sage_infer.cli.main import main
from sage_infer_kvstore import PagedStore, SSDStore
from shared_user import KEYS, MODEL, SCHEMA, block


@pytest.fixture
def arena() -> Iterator[PagedStore]:
    store = PagedStore(
        schema=SCHEMA, model_id=MODEL, name=f"test-{uuid.uuid4().hex}", capacity_blocks=4, keep=True
    )
    store.put(KEYS[:2], [block(key) for key in KEYS[:2]])
    store.match_keys(KEYS[:1])
    yield store
    store.close()
    for file in Path("/dev/shm").glob(f"{store.region_uri().removeprefix('shm://')}*"):
        file.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    store = SSDStore(schema=SCHEMA, model_id=MODEL, path=str(tmp_path), capacity_blocks=200)
    store.put(KEYS[:5], [block(key) for key in KEYS[:5]])
    store.close()
    return tmp_path


def name_of(arena: PagedStore) -> str:
    return arena.region_uri().removeprefix("shm://sage-kv-").rpartition("-")[0]


Sage = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sage:
    """Runs ``sage infer kv …``; gives the exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sage", "infer", "kv", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_stat_shows_arenas_and_folders(arena: PagedStore, disk: Path, sage: Sage) -> None:
    code, out, _ = sage("stat", str(disk), "--name", name_of(arena), "--json")
    assert code == 0
    paged, ssd = json.loads(out)
    assert (paged["store"], paged["blocks"], paged["capacity_blocks"], paged["processes"]) == (
        "paged",
        2,
        4,
        1,
    )
    assert (paged["block_bytes"], paged["hits"]) == (SCHEMA.bytes_per_page, 1)
    assert (ssd["store"], ssd["blocks"], ssd["processes"]) == ("ssd", 5, 0)
    assert ssd["bytes"] >= 5 * SCHEMA.bytes_per_page
    code, out, _ = sage("stat", "--name", name_of(arena))
    assert "2 of 4" in out
    assert "██████████░░░░░░░░░░ 50%" in out


def test_stat_without_arguments_shows_every_arena(arena: PagedStore, sage: Sage) -> None:
    code, out, _ = sage("stat")
    assert code == 0
    assert name_of(arena) in out


def test_verify_counts_damage(disk: Path, sage: Sage) -> None:
    code, out, _ = sage("verify", str(disk), "--json")
    assert code == 0
    assert [(row["whole"], row["damaged"]) for row in json.loads(out)] == [(5, 0)]
    file = sorted(disk.rglob("segment-*.kv"))[0]
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    code, out, err = sage("verify", str(disk), "--json")
    assert code != 0
    assert [(row["whole"], row["damaged"]) for row in json.loads(out)] == [(4, 1)]
    assert "1 blocks do not match their checksum" in err
    assert "reading" in err


def test_purge_removes_what_is_not_in_use(arena: PagedStore, disk: Path, sage: Sage) -> None:
    code, _, err = sage("purge", "--name", name_of(arena))
    assert code != 0
    assert "is open in 1 process(es)" in err
    arena.close()
    code, out, _ = sage("purge", str(disk), "--name", name_of(arena))
    assert code == 0
    assert "2 blocks" in out
    assert "5 blocks" in out
    assert not list(disk.rglob("segment-*.kv"))
    assert not list(Path("/dev/shm").glob(f"*{name_of(arena)}*"))


def test_a_folder_in_use_is_not_purged(disk: Path, sage: Sage) -> None:
    store = SSDStore(schema=SCHEMA, model_id=MODEL, path=str(disk), capacity_blocks=200)
    code, _, err = sage("purge", str(disk))
    assert code != 0
    assert "is open" in err
    assert store.contains(KEYS[:5]) == [True] * 5
    store.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["purge"], "nothing to purge"),
        (["stat", "--name", "nobody"], "no shared arena 'nobody'"),
        (["stat", "/nowhere"], "is not a folder"),
        (["verify", "/tmp"], "holds no SSD store"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, sage: Sage, tmp_path: Path) -> None:
    code, _, err = sage(*[str(tmp_path) if text == "/tmp" else text for text in arguments])
    assert code == 2
    assert message in err
