"""``sage infer kv convert``: blocks of one format, found by prompts and written in another format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from sage_infer.cli.main import main
from sage_infer.contracts import block_keys
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk.kv_pages.setting import open_kv_store
from sage_infer_kvstore import SSDStore
from sage_infer_kvstore.ssd.about import About

SHAPE: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "head_dim": 8}
AXES = ("layer", "kv", "head", "token", "dim")
SOURCE = KVCacheSchema(dtype="fp32", page_size=12, axis_order=AXES, **SHAPE)
TARGET = KVCacheSchema(dtype="bf16", page_size=8, axis_order=AXES, **SHAPE)
WEIGHTS = "0" * 32
PROMPTS = [list(range(100, 150)), [*range(100, 140), *range(7, 30)]]  # with a common start
Sage = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sage:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sage", "infer", "kv", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def values(tokens: list[int], begin: int, end: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """KV of tokens that depends on all tokens before, in plain form."""
    positions = np.cumsum(tokens)[begin:end].astype(np.float32)
    axes = np.arange(2 * 2 * 2 * 8, dtype=np.float32).reshape(2, 2, 2, 1, 8)
    return np.sin(axes + positions[:, None] / 7).astype(np.float32)


def opened(path: Path, schema: KVCacheSchema, model: str, weights: str = WEIGHTS, blocks: int = 100) -> Any:
    setting = {"store": "ssd", "path": str(path), "capacity_blocks": blocks}
    return open_kv_store(setting, schema=schema, model_id=model, weights_id=weights)


def save(store: Any, model: str, tokens: list[int], salt: bytes = b"") -> None:
    keys = list(block_keys(model, SOURCE, tokens, salt=salt))
    pages = [values(tokens, i * 12, i * 12 + 12) for i in range(len(keys))]
    assert store.put(keys, [memoryview(np.ascontiguousarray(page)).cast("B") for page in pages]) == len(keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two engines' blocks in one folder, those of the second one still missing."""
    with_blocks, without = opened(tmp_path, SOURCE, "one"), opened(tmp_path, TARGET, "other")
    for tokens in PROMPTS:
        save(with_blocks, "one", tokens)
    save(with_blocks, "one", PROMPTS[0], salt=b"tenant")
    with_blocks.close()
    without.close()
    return tmp_path


@pytest.fixture
def spaces(folder: Path) -> tuple[Path, Path]:
    found = {about.model_id: place for place in folder.iterdir() if (about := About.read(place)) is not None}
    return found["one"], found["other"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(tokens) for tokens in PROMPTS))
    return path


def check(folder: Path, tokens: list[int], blocks: int, salt: bytes = b"") -> None:
    """The other engine finds so many blocks, with the values of the first one rounded to bf16."""
    store = opened(folder, TARGET, "other")
    keys = list(block_keys("other", TARGET, tokens, salt=salt))
    assert store.match_keys(keys) == blocks
    for number, key in enumerate(keys[:blocks]):
        page = bytearray(TARGET.bytes_per_page)
        assert store.get([key], [memoryview(page)]) == [True]
        found = (np.frombuffer(page, np.uint16).astype(np.uint32) << 16).view(np.float32)
        expected = values(tokens, number * 8, number * 8 + 8).ravel()
        assert np.abs(found - expected).max() <= 2**-8
    store.close()


def test_blocks_are_converted(folder: Path, spaces: tuple[Path, Path], prompts: Path, sage: Sage) -> None:
    code, out, err = sage("convert", *spaces, "--prompts", prompts, "--json")
    assert code == 0, err
    assert "converting" in err
    found = json.loads(out)
    # 48 and 60 tokens are stored, which are 6 and 7 blocks of 8; the first 40 tokens are 5 common ones.
    expected = {"prompts": 2, "found_prompts": 2, "written": 8, "kept": 5, "dropped": 0}
    assert {name: found[name] for name in expected} == expected
    assert found["bytes"] == 8 * TARGET.bytes_per_page
    assert [About.read(space).capacity_blocks for space in spaces] == [100, 100]
    for tokens, blocks in zip(PROMPTS, (6, 7), strict=True):
        check(folder, tokens, blocks)
    check(folder, PROMPTS[0], 0, salt=b"tenant")
    code, out, _ = sage("convert", *spaces, "--prompts", prompts)
    assert code == 0
    assert "0 blocks written" in out
    assert "13 there already" in out


def test_salts_and_answers_of_servers(
    folder: Path, spaces: tuple[Path, Path], prompts: Path, sage: Sage
) -> None:
    prompts.write_text(
        json.dumps({"prompt_token_ids": PROMPTS[0], "cache_salt": "tenant", "choices": []})
        + "\n\n"
        + json.dumps({"choices": [{"text": "hi", "prompt_token_ids": [1, 2, 3]}]})
    )
    code, out, err = sage("convert", *spaces, "--prompts", prompts, "--json")
    assert code == 0, err
    assert (json.loads(out)["found_prompts"], json.loads(out)["written"]) == (1, 6)
    check(folder, PROMPTS[0], 6, salt=b"tenant")
    check(folder, PROMPTS[0], 0)


def test_damaged_blocks_end_a_prompt(
    folder: Path, spaces: tuple[Path, Path], prompts: Path, sage: Sage
) -> None:
    """What lies before the damage is converted."""
    prompts.write_text(json.dumps(PROMPTS[1]))
    page = np.ascontiguousarray(values(PROMPTS[1], 48, 60)).tobytes()  # its last block
    (file,) = (file for file in spaces[0].glob("segment-*.kv") if page in file.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(page) + 100] ^= 1
    file.write_bytes(data)
    code, out, _ = sage("convert", *spaces, "--prompts", prompts, "--json")
    assert code == 0
    assert json.loads(out)["written"] in (0, 6)
    check(folder, PROMPTS[1], json.loads(out)["written"])


def test_a_full_target_drops_blocks(tmp_path: Path, prompts: Path, sage: Sage) -> None:
    """The target keeps the capacity that its engine has set."""
    source, target = opened(tmp_path / "a", SOURCE, "one"), opened(tmp_path / "b", TARGET, "other", blocks=4)
    save(source, "one", PROMPTS[0])
    source.close()
    target.close()
    code, out, err = sage("convert", tmp_path / "a", tmp_path / "b", "--prompts", prompts, "--json")
    assert code == 0, err
    (space,) = (tmp_path / "b").iterdir()
    about = About.read(space)
    assert about is not None
    assert about.capacity_blocks == 4
    assert about.weights_id == WEIGHTS
    assert json.loads(out)["written"] <= 6


def test_mistakes_are_named(
    folder: Path, spaces: tuple[Path, Path], prompts: Path, sage: Sage, tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        code, _, err = sage("convert", *arguments)
        assert code != 0
        return err

    err = refused(folder, spaces[1], "--prompts", prompts)
    assert "several formats" in err
    assert spaces[0].name in err
    assert "source and target" in refused(spaces[0], spaces[0], "--prompts", prompts)
    assert "cannot read" in refused(*spaces, "--prompts", tmp_path / "none")
    for line, message in [
        ("", "has no prompts"),
        ("[1, 2", "prompts.jsonl:1: expected a list"),
        ('["a"]', "prompts.jsonl:1: expected a list"),
        ("[true]", "expected a list"),
        ("[]", "expected a list"),
        ('{"prompt": "text"}', "return_token_ids"),
        ('{"prompt_token_ids": [1], "cache_salt": 5}', "cache_salt"),
        ('{"prompt_token_ids": [1], "adapter": "a"}', "adapter are not supported"),
        ("[5, 6, 7]", "has no block of these prompts"),
    ]:
        prompts.write_text(line)
        assert message in refused(*spaces, "--prompts", prompts)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({}, "1" * 32, "KV of other weights"),
        ({}, "", "does not say which weights"),
        ({"num_layers": 3}, WEIGHTS, "num_layers differs"),
        ({"format_id": "nobody-1"}, WEIGHTS, "nobody-1"),
        (
            {"dtype": "int8", "scale_dtype": "fp32", "scale_granularity": "tensor"},
            WEIGHTS,
            "scales of the whole",
        ),
    ],
)
def test_other_pairs_are_refused(
    change: dict[str, Any], weights: str, message: str, tmp_path: Path, prompts: Path, sage: Sage
) -> None:
    source = opened(tmp_path / "a", SOURCE, "one")
    save(source, "one", PROMPTS[0])
    source.close()
    opened(tmp_path / "b", attrs.evolve(TARGET, **change), "other", weights).close()
    code, _, err = sage("convert", tmp_path / "a", tmp_path / "b", "--prompts", prompts)
    assert code != 0
    assert message in err


def test_an_open_store_is_not_touched(
    folder: Path, spaces: tuple[Path, Path], prompts: Path, sage: Sage
) -> None:
    store = opened(folder, SOURCE, "one")
    code, _, err = sage("convert", *spaces, "--prompts", prompts)
    store.close()
    assert code != 0
    assert "in use by another KV store" in err


def test_a_folder_of_an_earlier_version_is_named(
    spaces: tuple[Path, Path], prompts: Path, sage: Sage
) -> None:
    for text in ("", "{}", '{"model_id": 1, "weights_id": "", "schema": {}, "capacity_blocks": 1}'):
        (spaces[0] / "about.json").write_text(text)
        code, _, err = sage("convert", *spaces, "--prompts", prompts)
        assert code != 0
        assert "does not say which model and format" in err


def test_what_is_known_stays(tmp_path: Path) -> None:
    """A store that is opened without its engine keeps what the engine has said."""
    opened(tmp_path, SOURCE, "one").close()
    SSDStore(schema=SOURCE, model_id="one", path=str(tmp_path), capacity_blocks=7).close()
    (space,) = tmp_path.iterdir()
    assert About.read(space) == About("one", WEIGHTS, SOURCE, 7)


@pytest.mark.parametrize("outer", ["tiered", "quantized"])
def test_stores_over_a_folder_pass_it_on(outer: str, tmp_path: Path) -> None:
    lower = {"store": "ssd", "path": str(tmp_path), "capacity_blocks": 10}
    open_kv_store({"store": outer, "lower": lower}, schema=SOURCE, model_id="one", weights_id=WEIGHTS).close()
    (space,) = tmp_path.iterdir()
    about = About.read(space)
    assert about is not None
    assert about.weights_id == WEIGHTS
