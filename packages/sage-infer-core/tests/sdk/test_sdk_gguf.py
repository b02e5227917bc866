"""Metadata of GGUF files: every kind of value, and whatever else may stand there."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import ModelFileError
from sage_infer.sdk.gguf import read_metadata

CODES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 7: "<?", 10: "<Q", 11: "<q"}
Entry = tuple[int, object]


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind: int, data: object) -> bytes:
    if kind == 8:
        return string(str(data))
    if kind == 9:
        assert isinstance(data, tuple)
        inner, items = data
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack({**CODES, 6: "<f", 12: "<d"}[kind], data)


def gguf(entries: dict[str, Entry], magic: bytes = b"GGUF", version: int = 3) -> bytes:
    head = struct.pack("<4sIQQ", magic, version, 0, len(entries))
    return head + b"".join(
        string(k) + struct.pack("<I", kind) + value(kind, v) for k, (kind, v) in entries.items()
    )


ENTRIES: dict[str, Entry] = {
    "general.architecture": (8, "llama"),
    "llama.block_count": (4, 30),
    "llama.rope.freq_base": (12, 10000.0),
    "flag": (7, True),
    "tokenizer.ggml.tokens": (9, (8, ["a", "bc", ""])),
    "tokenizer.ggml.scores": (9, (6, [1.0, 2.0])),
    "nested": (9, (9, [(4, [1, 2]), (4, [])])),
    "last": (11, -7),
}


def test_values_and_lengths_of_lists(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(ENTRIES) + b"tensors follow")
    assert read_metadata(tmp_path / "m.gguf") == {
        "general.architecture": "llama", "llama.block_count": 30, "llama.rope.freq_base": 10000.0, "flag": True,
        "tokenizer.ggml.tokens#": 3, "tokenizer.ggml.scores#": 2, "nested#": 2, "last": -7,
    }  # fmt: skip


@given(
    st.dictionaries(
        st.text(max_size=9),
        st.one_of(
            st.tuples(st.just(8), st.text()),
            st.tuples(st.just(4), st.integers(0, 2**32 - 1)),
            st.tuples(st.just(11), st.integers(-(2**63), 2**63 - 1)),
        ),
    )
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Entry]
) -> None:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    file.write_bytes(gguf(entries))
    assert read_metadata(file) == {key: data for key, (_, data) in entries.items()}


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf(ENTRIES)
    file = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cut\.gguf: (not a GGUF|truncated|the file is empty)"):
            read_metadata(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gguf({}, magic=b"GGML"), "not a GGUF file"),
        (gguf({}, version=9), "GGUF version 9 is not supported"),
        (gguf({})[:16] + struct.pack("<Q", 1) + string("k") + b"c\0\0\0", "unknown value type 99"),
        (gguf({"k": (9, (99, []))}), "unknown value type 99"),
        (gguf({})[:16] + struct.pack("<Q", 1) + string("k") + struct.pack("<I", 9)
         + struct.pack("<IQ", 9, 1) * 20 + struct.pack("<IQ", 4, 0), "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        read_metadata(tmp_path / "m.gguf")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.gguf: cannot be read: No such file"):
        read_metadata(tmp_path / "none.gguf")
