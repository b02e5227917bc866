"""Preparation of a model: once, completely, and again after its files change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from gguf.constants import GGMLQuantizationType as GgmlType
from sage_infer.errors import ConfigError, InvalidRequest, ModelFileError, ModelNotFound
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.model_files import find_model_file
from sage_infer_openvino.models.prepare import prepare_decoder

Write = Callable[..., Path]


def test_prepared_once_and_ready_to_run(tiny_gguf: Write, tmp_path: Path) -> None:
    path, cache = tiny_gguf(GgmlType.Q4_1), tmp_path / "cache"
    seen: list[tuple[str, float]] = []
    prepared = prepare_decoder(path, cache_dir=cache, progress=lambda stage, done: seen.append((stage, done)))
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    assert seen[0] == ("reading", 0.0)
    assert seen[-1] == ("ready", 1.0)
    assert prepared.config == GgufModel(path).config
    assert prepared.load_tokenizer().encode("he") == [256]
    assert prepared.weight_nbytes > 0
    seen.clear()
    again = prepare_decoder(path, cache_dir=cache, progress=lambda stage, done: seen.append((stage, done)))
    assert again == prepared
    assert seen == [("ready", 1.0)]


def test_both_formats_compute_the_same(tiny_gguf: Write, tmp_path: Path) -> None:
    path = tiny_gguf(GgmlType.Q4_1)
    exact, full = (prepare_decoder(path, cache_dir=tmp_path / "c", weight_format=f) for f in ("exact", "f32"))
    assert exact.folder != full.folder
    assert exact.fingerprint != full.fingerprint
    assert full.weight_nbytes > 3 * exact.weight_nbytes
    a, b = (PagedRunner(model.xml, 1).step([SequenceSlice([1, 2, 3], 0, [0])]) for model in (exact, full))
    assert np.abs(a - b).max() < 1e-4


def test_changed_files_are_prepared_again_and_the_old_form_removed(tiny_gguf: Write, tmp_path: Path) -> None:
    path, cache = tiny_gguf(), tmp_path / "cache"
    first = prepare_decoder(path, cache_dir=cache)
    os.utime(path, (1, 1))
    second = prepare_decoder(path, cache_dir=cache)
    assert second.folder != first.folder
    assert not first.folder.exists()
    # The same weights, so that KV computed before is still right.
    assert second.fingerprint == first.fingerprint
    assert second.weights_id == first.weights_id


def test_the_weights_id_is_of_the_source_alone(tiny_gguf: Write, tmp_path: Path) -> None:
    """Whatever form they are prepared in, and whatever else the file says; the rule as the module states it."""
    path, cache = tiny_gguf(GgmlType.Q4_1), tmp_path / "cache"
    forms = [prepare_decoder(path, cache_dir=cache, weight_format=form) for form in ("exact", "int8")]
    file = GgufModel(path).file
    lines = [
        f"{name}\t{tensor.type.name}\t{','.join(map(str, tensor.shape))}\t"
        + xxhash.xxh3_128_hexdigest(path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes])
        + "\n"
        for name, tensor in file.tensors.items()
    ]
    expected = hashlib.blake2b("".join(sorted(lines)).encode(), digest_size=16).hexdigest()
    assert {form.weights_id for form in forms} == {expected}
    renamed = tiny_gguf(
        GgmlType.Q4_1, name="renamed.gguf", metadata={"tokenizer.chat_template": "{{ messages }}"}
    )
    other = tiny_gguf(GgmlType.Q8_0, name="other.gguf")
    ids = [prepare_decoder(p, cache_dir=cache).weights_id for p in (renamed, other)]
    assert ids[0] == expected
    assert ids[1] != expected


def test_paths_of_models(tiny_gguf: Write, tmp_path: Path) -> None:
    path = tiny_gguf()
    assert find_model_file(path) == find_model_file(path.parent) == path
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        find_model_file(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"neither a config\.json nor a \.gguf"):
        find_model_file(tmp_path / "empty")
    tiny_gguf(name="second.gguf")
    with pytest.raises(ModelFileError, match=r"several models \(second.gguf, tiny.gguf\)"):
        find_model_file(tmp_path)


def test_nothing_is_left_of_a_model_that_cannot_be_prepared(tiny_gguf: Write, tmp_path: Path) -> None:
    path = tiny_gguf(metadata={"llama.block_count": 3})
    with pytest.raises(ModelFileError, match=r"blk\.2"):
        prepare_decoder(path, cache_dir=tmp_path / "cache")
    with pytest.raises(InvalidRequest, match="'int3'"):
        prepare_decoder(path, cache_dir=tmp_path / "cache", weight_format="int3")  # type: ignore[arg-type]
    assert [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == []


def test_a_full_disk_is_reported_and_leaves_nothing(tiny_gguf: Write, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    resource = pytest.importorskip("resource")
    path, before = tiny_gguf(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot write the prepared model.*free some space"):
            prepare_decoder(path, cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == []
