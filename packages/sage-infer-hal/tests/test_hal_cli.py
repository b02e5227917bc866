"""``sage infer hal …`` as a person and a program meet it, with the detectors of the toy plug-in."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Sage


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recorded.txt"
    path.write_text("toy-smi 4\n")
    return path


def test_show(sage: Sage) -> None:
    done = sage("infer", "hal", "show")
    assert done.returncode == 0, done.stderr
    assert "npu:1: T1, 16.0 GiB" in done.stdout
    assert "npu:0  X      TOY" in done.stdout
    assert "TOY: 100.0 GB/s each way, nominal (toy table)" in done.stdout
    assert "hbm" in done.stdout
    assert (
        "note: detector toy-failing (toy-sage): toy-smi 2.0, line 3: expected a device, got 'oops'"
        in done.stderr
    )


def test_profile_lists_sources_and_json_is_read_again(sage: Sage, tmp_path: Path) -> None:
    done = sage("infer", "hal", "profile")
    assert "peak fp16" in done.stdout
    assert "low" in done.stdout
    assert "source: toy driver 1.0" in done.stdout
    written = sage("infer", "hal", "profile", "--json")
    (tmp_path / "profile.json").write_text(written.stdout)
    again = sage("infer", "hal", "show", "--from-file", "profile.json", "--json")
    assert json.loads(again.stdout) == json.loads(written.stdout)


def test_a_recording_describes_another_machine(sage: Sage, recording: Path) -> None:
    shown = sage.json("infer", "hal", "profile", "--from-file", recording.name, "--vendor", "npu")
    assert len(shown["accelerators"]) == 4
    assert shown["sources"] == ["toy-smi in recorded.txt"]
    assert shown["cpus"] == []  # nothing of this machine is mixed in


def test_measure(sage: Sage) -> None:
    done = sage("infer", "hal", "show", "--measure", SAGE_INFER_DISABLE="host")
    assert "80.0 GB/s" in done.stdout
    assert "measuring npu …" in done.stderr


def test_plot(sage: Sage, recording: Path, tmp_path: Path) -> None:
    done = sage("infer", "hal", "plot", "-o", "topology.svg", "-f", recording.name, "--vendor", "toy")
    assert done.stdout == "wrote topology.svg\n"
    assert ElementTree.parse(tmp_path / "topology.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("profile", "--vendor", "npu"), 2, "use it with --from-file"),
        (("profile", "-f", "recorded.txt"), 2, "name the vendor of the tool with --vendor"),
        (
            ("show", "-f", "recorded.txt", "--vendor", "qqq"),
            2,
            "no installed detector reads recordings of 'qqq'",
        ),
        (
            ("show", "-f", "recorded.txt", "--vendor", "toy", "--measure"),
            2,
            "--measure measures this machine",
        ),
        (("show", "-f", "nowhere.txt", "--vendor", "toy"), 2, "cannot read nowhere.txt: No such file"),
        (("show", "-f", "/dev/zero", "--vendor", "toy"), 2, "/dev/zero has more than 64 MB"),
        (("show", "-f", "bad.txt", "--vendor", "toy"), 1, "bad.txt: line 1 is no output of toy-smi"),
        (("plot", "-o", "x.png", "-f", "recorded.txt", "--vendor", "toy"), 2, "must end in .svg"),
        (("plot", "-o", "no/x.svg", "-f", "recorded.txt", "--vendor", "toy"), 2, "cannot write no/x.svg"),
    ],
)
def test_wrong_input_is_one_line(
    sage: Sage, recording: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, expected: str
) -> None:
    (tmp_path / "bad.txt").write_text("nothing")
    assert expected in sage.fails("infer", "hal", *arguments, code=code)


def test_no_detector_is_said(sage: Sage) -> None:
    off = "toy,toy-failing,host,nvidia,ascend,cambricon,hygon,kunlunxin"
    done = sage("infer", "hal", "show", SAGE_INFER_DISABLE=off)
    assert done.stdout == "machine: no hardware found\n"
    assert "pip install sage-infer-host-hal" in done.stderr
