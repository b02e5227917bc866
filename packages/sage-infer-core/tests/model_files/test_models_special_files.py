"""Named pipes, sockets, devices and folders in place of model files: an error that names them, never a wait."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sage_infer.errors import ModelFileError
from sage_infer.models import (
    check_model_files,
    inspect_model,
    open_model_file,
    read_model_text,
    resolve_model,
)
from sage_infer.models.hf_hub import cached, hub_cache
from sage_infer.sdk import weights_id_of
from sage_infer.sdk.gguf import GgufHeader

if TYPE_CHECKING:
    from conftest import Sage

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": lambda path: os.mkfifo(path),
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
}
FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "modules.json", "tokenizer.json",
    "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "vocab.txt", "1_Pooling/config.json",
    "additional_chat_templates/tool_use.jinja",
)  # fmt: skip


def folder(path: Path) -> Path:
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "hidden_size": 4}))
    (path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (path / "modules.json").write_text("[]")
    (path / "1_Pooling" / "config.json").write_text("{}")
    return path


def put(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    SPECIAL[kind](path)
    return path


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_something_else_than_a_file(tmp_path: Path, name: str, kind: str) -> None:
    wrong = put(folder(tmp_path / "m") / name, kind)
    with pytest.raises(ModelFileError) as caught:
        inspect_model(tmp_path / "m")
    assert str(caught.value).startswith(f"{wrong} cannot be read: it is {kind}, expected a regular file")
    with pytest.raises(ModelFileError, match=f"{name}.* it is {kind}"):
        resolve_model(str(tmp_path / "m"))


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "a folder"])
def test_a_path_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path / "m.gguf", kind)
    for read in (inspect_model, GgufHeader, weights_id_of):
        with pytest.raises(ModelFileError, match=f"m.gguf.* it is {kind}, expected a regular file"):
            read(path)


@pytest.mark.parametrize("kind", SPECIAL)
def test_readers_of_single_files(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path / "config.json", kind)
    for read in (open_model_file, read_model_text):
        with pytest.raises(OSError, match=f"it is {kind}, expected a regular file") as caught:
            read(path)
        assert caught.value.strerror == f"it is {kind}, expected a regular file"
    with pytest.raises(ModelFileError, match=f"it is {kind}"):
        check_model_files(tmp_path)


@pytest.mark.parametrize("kind", SPECIAL)
def test_shards_of_weights(tmp_path: Path, kind: str) -> None:
    path = put(folder(tmp_path / "m") / "model.safetensors", kind)
    with pytest.raises(ModelFileError, match=f"it is {kind}, expected a regular file"):
        weights_id_of(path.parent)


def test_a_pipe_that_takes_the_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a file and its opening, another process may replace it."""
    path = tmp_path / "config.json"
    path.write_text("{}")
    regular = os.stat(path)
    put(path, "a named pipe")
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with pytest.raises(OSError, match="it is a named pipe"):
        open_model_file(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_texts_that_would_fill_the_memory(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "m") / name
    with path.open("wb") as file:
        file.truncate(600 << 20)  # without a byte on the disk
    with pytest.raises(ModelFileError, match=f"{name} cannot be read: it has 629,145,600 bytes"):
        inspect_model(tmp_path / "m")
    with pytest.raises(OSError, match="expected at most 536,870,912"):
        read_model_text(path)


def test_what_is_no_model_file_may_be_anything(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    for name in ("agent.sock", "queue", "log.pipe"):
        os.mkfifo(path / name)
    (path / "onnx").mkdir()
    assert inspect_model(path).model_type == "embedding"
    assert read_model_text(path / "modules.json") == "[]"
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("config.json", "model.safetensors", "modules.json"):  # as the hub's cache does
        (linked / name).symlink_to(path / name)
    assert inspect_model(linked).model_type == "embedding"
    (linked / "tokenizer.json").symlink_to(tmp_path / "gone")
    check_model_files(linked)


def test_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    place = hub_cache() / "models--a--b"
    snapshot = folder(place / "snapshots" / "1234")
    assert cached("a/b") == snapshot
    put(place / "refs" / "main", "a named pipe")
    assert cached("a/b") == snapshot
    put(snapshot / "config.json", "a named pipe")
    assert cached("a/b") is None


def test_commands_do_not_wait(sage: Sage, tmp_path: Path) -> None:
    """Each is a process; a wait would end with the test's time."""
    hub = tmp_path / "hub"
    path = folder(hub / "models--a--b" / "snapshots" / "1234")
    put(path / "config.json", "a named pipe")
    for command in ("model", "backend"):
        assert sage("infer", command, "list", HF_HUB_CACHE=str(hub)).returncode == 0
    for words in (("model", "add", str(path)), ("generate", "-m", str(path), "hi")):
        assert "config.json cannot be read: it is a named pipe" in sage.fails("infer", *words, code=2)
