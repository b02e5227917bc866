"""What a process and its children hold, from a recorded /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sage_infer.errors import BackendUnavailable, ModelFileError
from sage_infer.schemas import HardwareProfile
from sage_infer_hybrid.machine import machine_devices
from sage_infer_hybrid.model_shape import read_shape
from sage_infer_hybrid.process_memory import resident_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")


def process(root: Path, pid: int, parent: int, pages: int | None) -> None:
    folder = root / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 1 0")
    if pages is not None:
        (folder / "statm").write_text(f"9999 {pages} 1 1 0 1 0")


def test_children_count_and_others_do_not(tmp_path: Path) -> None:
    for pid, parent, pages in ((10, 1, 100), (11, 10, 20), (12, 11, 3), (13, 1, 500), (14, 10, None)):
        process(tmp_path, pid, parent, pages)
    assert resident_bytes(tmp_path, 10) == 123 * PAGE
    assert resident_bytes(tmp_path, 99) is None


def test_this_process_holds_something() -> None:
    found = resident_bytes()
    assert found is None or found > 2**20


def test_a_machine_of_unknown_memory_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="pip install sage-infer-host-hal"):
        machine_devices(HardwareProfile(notes=("host: failed",)))


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "cannot be read"), ("{}", "does not say how large the model is .*give memory_gb")],
)
def test_a_folder_that_does_not_say_its_size_is_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelFileError, match=message):
        read_shape(tmp_path)


def test_weights_are_as_large_as_their_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,'
        ' "vocab_size": 30522, "max_position_embeddings": 512}'
    )
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    shape = read_shape(tmp_path)
    assert (shape.stored_bytes, shape.causal, shape.layers, shape.kv_bytes_per_token(16)) == (
        1000,
        False,
        6,
        0,
    )
