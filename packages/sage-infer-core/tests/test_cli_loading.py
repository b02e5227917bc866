"""What commands pass on while a model is loaded: a quantization profile in, progress out."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Sage

PROFILE = "profile_id: eight\nweight_bits: 8\n"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "eight.yaml"
    path.write_text(PROFILE)
    return path


def test_generate_and_chat_load_with_a_profile(sage: Sage, gguf: Path, profile: Path) -> None:
    flags = ("-m", str(gguf), "--quant-profile", str(profile))
    assert sage("infer", "generate", "abc", *flags).stdout == "[eight] cba\n"
    assert sage("infer", "chat", *flags, stdin="abc\n").stdout == "[eight] cba\n"
    as_json = profile.with_suffix(".json")
    as_json.write_text('{"profile_id": "j"}')
    assert (
        sage("infer", "generate", "abc", "-m", str(gguf), "--quant-profile", str(as_json)).stdout
        == "[j] cba\n"
    )


def test_a_profile_of_the_configuration_is_for_its_model(sage: Sage, gguf: Path, profile: Path) -> None:
    (sage.folder / "below").mkdir()
    config = sage.folder / "below" / "config.yaml"
    config.write_text(f"inference: {{backend: toy, model: {gguf}, quant_profile: ../{profile.name}}}\n")
    found = {"SAGE_INFER_CONFIG": str(config)}
    assert sage("infer", "generate", "abc", **found).stdout == "[eight] cba\n"
    other = gguf.with_name("other.gguf")
    other.write_bytes(gguf.read_bytes())
    assert sage("infer", "generate", "abc", "-m", str(other), **found).stdout == "cba\n"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("weight_bits: 4", 4, "weight_bits must be 8 or more, got 4"),
        ("weight_bit: 4", 2, "eight.yaml: $.weight_bit: is not a known key; did you mean"),
        ("weight_bits: x", 2, "eight.yaml: $.weight_bits: must be"),
        ("{", 2, "eight.yaml is neither JSON nor YAML"),
        (None, 2, "cannot read the quantization profile"),
    ],
)
def test_a_profile_that_does_not_do_is_refused_by_file_and_field(
    sage: Sage, gguf: Path, profile: Path, text: str | None, code: int, message: str
) -> None:
    profile.unlink() if text is None else profile.write_text(text)
    line = sage.fails("infer", "generate", "abc", "-m", str(gguf), "--quant-profile", str(profile), code=code)
    assert message in line


def test_backends_without_profiles_refuse_them_by_name(sage: Sage, encoder: Path, profile: Path) -> None:
    refusal = "backend 'toy-embedding' does not support quantization profiles"
    flags = ("--quant-profile", str(profile))
    assert refusal in sage.fails("infer", "embed", "a", "-m", str(encoder), *flags, code=4)
    (encoder / "modules.json").unlink()
    (encoder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    assert refusal in sage.fails("infer", "rerank", "q", "a", "-m", str(encoder), *flags, code=4)


def test_arguments_that_are_no_options_are_refused(sage: Sage, gguf: Path) -> None:
    line = sage.fails("infer", "generate", "abc", "-m", str(gguf), "-o", "on_progress=1", code=2)
    assert "'on_progress' is not an option of a backend" in line


def test_progress_is_a_bar_on_a_terminal_and_one_line_elsewhere(sage: Sage, gguf: Path) -> None:
    arguments = ("infer", "generate", "abc", "-m", str(gguf))
    assert sage(*arguments).stderr == f"loading {gguf} on toy …\n"
    master, slave = pty.openpty()
    environment = {**sage.environment, "TERM": "xterm", "COLUMNS": "300"}
    command = [sys.executable, "-m", "sage_infer.cli.main", *arguments]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, text=True, cwd=sage.folder, env=environment
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # Linux' way to say that the other end is closed
        pass
    assert child.stdout is not None
    assert (child.stdout.read(), child.wait()) == ("cba\n", 0)
    os.close(master)
    assert f"loading {gguf} on toy: packing" in shown.decode()
    assert "25%" in shown.decode()
