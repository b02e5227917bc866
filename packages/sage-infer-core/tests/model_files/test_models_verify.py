"""``sage infer doctor --verify`` reads the files of models again and names those that differ from what was recorded."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from sage_infer.models.store import MARKER
from sage_infer.sdk.prepared import PreparedCache

IDENTITY = {"model": "a"}


def build(folder: Path) -> None:
    (folder / "model.bin").write_bytes(bytes(range(256)) * 4096)
    (folder / "model.xml").write_text("<net/>")


def flip(file: Path) -> None:
    """Flip one bit as a disk does: no metadata tells, and the last verification's record agrees."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    record = file.parent / "compared.json"
    if record.exists():  # the one time that a program cannot set back
        known = json.loads(record.read_text())
        after = file.stat()
        known[file.name] = [after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino]
        record.write_text(json.dumps(known))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return PreparedCache(tmp_path / "cache" / "sage-infer" / "openvino").get_or_build("tiny", IDENTITY, build)


def test_whole_models_are_counted(sage, prepared: Path) -> None:
    report = json.loads(sage("infer", "doctor", "--verify", "--json").stdout)
    size = (prepared / "model.bin").stat().st_size + len("<net/>")
    assert report["verified"] == {"models": 1, "files": 2, "bytes": size, "damaged": []}
    assert "verified" not in sage.json("infer", "doctor", SAGE_INFER_DISABLE="toy-lost")


def test_a_flipped_bit_in_a_prepared_model_is_found(sage, prepared: Path) -> None:
    flip(prepared / "model.bin")
    assert (
        PreparedCache(prepared.parent).get_or_build("tiny", IDENTITY, build) == prepared
    )  # the load sees nothing
    done = sage("infer", "doctor", "--verify", "--json", SAGE_INFER_DISABLE="toy-lost")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["verified"]["damaged"] == [str(prepared / "model.bin")]
    problem = report["problems"][0]
    assert problem["severity"] == "error"
    assert problem["where"] == str(prepared / "model.bin")
    assert "SHA-256 differs" in problem["what"]
    assert problem["fix"] == f"delete {prepared}; the model is prepared again when it is loaded"
    text = sage("infer", "doctor", "--verify", SAGE_INFER_DISABLE="toy-lost")
    assert text.returncode == 1
    assert f"error: {prepared / 'model.bin'}: has its recorded size" in text.stdout
    assert "verified: 1 models, 2 files, 1 MB, 1 damaged" in text.stdout
    assert f"verifying {prepared.name} …" in text.stderr


def test_a_damaged_model_of_a_wheel_is_found(sage, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "sage-infer" / "models" / "tiny-1.0"
    place.mkdir(parents=True)
    weights = place / "tiny.gguf"
    weights.write_bytes(b"GGUF" * 100)
    facts = {"size": 400, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    gone = {"size": 1, "sha256": "0" * 64}
    (place / MARKER).write_text(
        json.dumps({"name": "tiny", "files": {"tiny.gguf": facts, "gone.json": gone}})
    )
    flip(weights)
    report = json.loads(sage("infer", "doctor", "--verify", "--json").stdout)
    assert report["verified"]["damaged"] == [str(weights), str(place / "gone.json")]
    assert report["problems"][0]["fix"] == f"delete {place}, then: sage infer model add tiny"
    assert report["problems"][1]["what"] == "cannot be read: No such file or directory"


def test_further_folders_are_named(sage, tmp_path: Path) -> None:
    entry = PreparedCache(tmp_path / "elsewhere").get_or_build("tiny", IDENTITY, build)
    (entry / "model.xml").write_text("<net>")
    done = sage("infer", "doctor", "--verify", "--cache-dir", str(tmp_path / "elsewhere"))
    assert done.returncode == 1
    assert f"error: {entry / 'model.xml'}: has 5 bytes instead of 6" in done.stdout
    assert "needs --verify" in sage("infer", "doctor", "--cache-dir", str(tmp_path)).stderr
    assert "is no folder" in sage("infer", "doctor", "--verify", "--cache-dir", "nowhere").stderr
