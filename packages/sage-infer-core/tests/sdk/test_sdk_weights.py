"""Ids of weights by content."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import xxhash
from sage_infer.errors import ModelFileError
from sage_infer.sdk import record_source, weights_id_of

TENSORS = {"b": b"12345678", "a": b"abcd"}


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "F32", "shape": [1, len(data) // 4], "data_offsets": [at, at + len(data)]}  # type: ignore[dict-item]
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def write_gguf(path: Path, tensors: dict[str, bytes], kind: int = 0) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    infos, data = b"", b""
    for name, values in tensors.items():
        infos += text(name) + struct.pack("<IQQIQ", 2, len(values) // 4, 1, kind, len(data))
        data += values.ljust(32, b"\xff")  # what lies between tensors does not count
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + infos
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + data)


def by_definition(tensors: dict[str, bytes]) -> str:
    lines = [
        f"{name}\tF32\t1,{len(data) // 4}\t{xxhash.xxh3_128_hexdigest(data)}\n"
        for name, data in tensors.items()
    ]
    return hashlib.blake2b("".join(sorted(lines)).encode(), digest_size=16).hexdigest()


def test_the_id_is_that_of_the_tensors_not_of_their_files(tmp_path: Path) -> None:
    one, shards, loose, gguf = (tmp_path / name for name in ("one", "shards", "loose", "model.gguf"))
    for folder in (one, shards, loose):
        folder.mkdir()
    write_safetensors(one / "model.safetensors", TENSORS)
    write_safetensors(one / "consolidated.safetensors", {"a": b"dup."})  # the same model, in other words
    for number, name in enumerate(TENSORS):
        write_safetensors(shards / f"part-{number}.safetensors", {name: TENSORS[name]})
        write_safetensors(loose / f"x{number}.safetensors", {name: TENSORS[name]})
    index = {"weight_map": {name: f"part-{number}.safetensors" for number, name in enumerate(TENSORS)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(shards / "other.safetensors", {"c": b"none"})  # not in the index
    write_gguf(gguf, TENSORS)
    ids = {weights_id_of(path) for path in (one, shards, loose, gguf)}
    assert ids == {by_definition(TENSORS)}
    write_gguf(gguf, {**TENSORS, "a": b"abce"})
    assert weights_id_of(gguf) not in ids


def test_a_split_gguf_is_one_model(tmp_path: Path) -> None:
    for number, name in enumerate(TENSORS, 1):
        write_gguf(tmp_path / f"m-{number:05}-of-00002.gguf", {name: TENSORS[name]})
    assert weights_id_of(tmp_path / "m-00001-of-00002.gguf") == by_definition(TENSORS)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelFileError, match="00002-of-00002"):
        weights_id_of(tmp_path / "m-00001-of-00002.gguf")


def test_a_converted_folder_keeps_the_id_of_its_source(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    record_source(tmp_path, "0123")
    assert weights_id_of(tmp_path) == "0123"
    record_source(tmp_path, "4567")
    assert weights_id_of(tmp_path) == "4567"
    changed = {**TENSORS, "a": b"abce"}
    write_safetensors(tmp_path / "model.safetensors", changed)
    assert weights_id_of(tmp_path) == by_definition(changed)


def test_files_without_an_id(tmp_path: Path) -> None:
    assert weights_id_of(tmp_path) == ""
    write_gguf(tmp_path / "new.gguf", TENSORS, kind=999)
    assert weights_id_of(tmp_path / "new.gguf") == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read"),
        (struct.pack("<Q", 99) + b"{}", "truncated, or not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "invalid safetensors header"),
        (struct.pack("<Q", 4) + b"{{{{", "invalid safetensors header"),
    ],
)
def test_damaged_safetensors_are_named(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFileError, match=rf"model\.safetensors: {says}"):
        weights_id_of(tmp_path)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, TENSORS)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="truncated: tensor a ends at byte"):
        weights_id_of(tmp_path)
    gguf = tmp_path / "model.gguf"
    write_gguf(gguf, TENSORS)
    gguf.write_bytes(gguf.read_bytes()[:-30])
    with pytest.raises(ModelFileError, match="truncated: tensor a ends at byte"):
        weights_id_of(gguf)
