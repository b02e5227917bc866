"""``sage infer doctor --vendor`` and ``--report``: a vendor's wheel declares the checks, the command runs them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Sage

PLUGIN = """
from sage_infer import BackendSpec, DetectorSpec, Need, hookimpl

NEEDS = (
    Need(what="driver", files=("/opt/acme/driver",), install="install the driver"),
    Need(what="torch for Acme", distributions={"torch-acme": ">=2"}, install="pip install torch-acme"),
)


@hookimpl
def sage_infer_detectors():
    nodes = ("/dev/acme[0-9]*",)
    return [
        DetectorSpec(name="acme-tool", factory="acme_checks:Detector", hardware={"acme"}, device_nodes=nodes,
                     checks="acme_checks:CHECKS"),
        DetectorSpec(name="plain", factory="acme_checks:Detector", hardware={"plain"}, device_nodes=("/dev/plain",)),
        DetectorSpec(name="wrong", factory="acme_checks:Detector", hardware={"wrong"}, device_nodes=("/dev/wrong",),
                     checks="acme_checks:Detector"),
        DetectorSpec(name="lost", factory="acme_checks:Detector", hardware={"lost"}, device_nodes=("/dev/lost",),
                     checks="acme_checks:NOTHING"),
        DetectorSpec(name="host-only", factory="acme_checks:Detector", hardware={"cpu"}),
    ]


@hookimpl
def sage_infer_backends():
    return [
        BackendSpec(name=name, factory="acme_checks:Backend", serves={"llm"}, hardware={"acme"}, needs=NEEDS,
                    device_nodes=("/dev/acme[0-9]*",))
        for name in ("acme", "acme-two")
    ]
"""
CHECKS = """
from sage_infer.schemas import HardwareProfile
from sage_infer.sdk.diagnosis import Check, Finding, Part, VendorChecks, device_files, visible_devices

SOURCE = ("https://example.com/acme/issues/1",)


class Detector:
    def detect(self):
        return HardwareProfile()


class Backend: ...


def setting(machine):
    if machine.variable("ACME_MODE") == "slow":
        yield Finding(what="ACME_MODE=slow halves the speed", fix="unset ACME_MODE", severity="warning")
    if machine.variable("ACME_MODE") == "raise":
        raise RuntimeError("no mode")
    if machine.text("/opt/acme/pipe"):
        yield Finding(what="a pipe was read", fix="none")


CHECKS = VendorChecks(
    parts=(
        Part(name="kit", files=("/opt/acme/version",)),
        Part(name="torch-acme", distribution="torch-acme"),
    ),
    nodes=("/dev/acme*",),
    variables=("ACME_*",),
    checks=(
        device_files("/dev/acme[0-9]*", companions=("/dev/acme_ctl",), on_bus=lambda machine: 0, docker="--device x",
                     sources=SOURCE),
        visible_devices("ACME_VISIBLE_DEVICES", "/dev/acme[0-9]*", sources=SOURCE),
        Check(name="mode", sources=SOURCE, find=setting),
    ),
)
"""


class Acme:
    """The command on a machine with a vendor's stack and wheel."""

    def __init__(self, sage: Sage) -> None:
        self.sage = sage
        self.site, self.root = sage.folder / "site", sage.folder / "root"
        self.site.mkdir()
        self.distribution("acme-sage", "1.0", "[sage_infer.backends]\nacme = acme_plugin\n")
        self.distribution("torch-acme", "2.1")
        (self.site / "acme_plugin.py").write_text(PLUGIN)
        (self.site / "acme_checks.py").write_text(CHECKS)
        for path in ("dev/acme0", "dev/acme1", "dev/acme_ctl", "opt/acme/driver"):
            self.file(path)
        self.file("opt/acme/version", "8.1.0\n")

    def distribution(self, name: str, version: str, entry_points: str = "") -> None:
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def environment(self, **more: str) -> dict[str, str]:
        paths = os.pathsep.join([str(self.site), self.sage.environment["PYTHONPATH"]])
        return {"PYTHONPATH": paths, "SAGE_INFER_ROOT": str(self.root), **more}

    def doctor(self, *arguments: str, **environment: str) -> Any:
        return self.sage("infer", "doctor", *arguments, **self.environment(**environment))


@pytest.fixture
def acme(sage: Sage) -> Acme:
    return Acme(sage)


@pytest.mark.parametrize("name", ["acme", "acme-tool"])
def test_a_machine_that_works(acme: Acme, name: str) -> None:
    done = acme.doctor("--vendor", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kit         8.1.0" in done.stdout
    assert "torch-acme  2.1" in done.stdout
    assert "acme-two  ready" in done.stdout
    assert done.stdout.endswith("no problems found\n")


def test_findings_are_lines_with_their_fixes(acme: Acme) -> None:
    (acme.root / "dev/acme_ctl").unlink()
    (acme.root / "opt/acme/driver").unlink()
    done = acme.doctor("--vendor", "acme", ACME_VISIBLE_DEVICES="5", ACME_MODE="slow")
    assert done.returncode == 1
    problems = done.stdout[done.stdout.index("error: ") :]
    assert problems == (
        "error: driver: /opt/acme/driver does not exist\n"
        "    fix: install the driver\n"
        "error: device files: /dev/acme0 to /dev/acme1 without /dev/acme_ctl: the container has only some of the "
        "driver's files\n"
        "    fix: docker run --device /dev/acme_ctl …\n"
        "error: ACME_VISIBLE_DEVICES: ACME_VISIBLE_DEVICES=5: 5 not here: the 2 devices are numbered 0 to 1, also in "
        "a container\n"
        "    fix: export ACME_VISIBLE_DEVICES=0\n"
        "warning: mode: ACME_MODE=slow halves the speed\n"
        "    fix: unset ACME_MODE\n"
    )


def test_json_has_the_sources(acme: Acme) -> None:
    done = acme.doctor("--vendor", "acme", "--json", ACME_MODE="slow")
    assert done.returncode == 0  # a warning is no error
    report = json.loads(done.stdout)
    assert report["vendor"] == "acme"
    assert report["checked"] == ["acme-sage"]
    assert report["devices"] == ["/dev/acme0", "/dev/acme1", "/dev/acme_ctl"]
    assert report["parts"] == [
        {"name": "kit", "version": "8.1.0"}, {"name": "torch-acme", "version": "2.1"},
    ]  # fmt: skip
    assert report["problems"] == [
        {
            "severity": "warning", "where": "mode", "what": "ACME_MODE=slow halves the speed", "fix": "unset ACME_MODE",
            "sources": ["https://example.com/acme/issues/1"],
        }
    ]  # fmt: skip


def test_missing_devices_are_one_line(acme: Acme) -> None:
    (acme.root / "dev/acme0").unlink()
    (acme.root / "dev/acme1").unlink()
    report = json.loads(acme.doctor("--vendor", "acme", "--json").stdout)
    assert [problem["where"] for problem in report["problems"]] == ["hardware"]


def test_a_check_that_fails_blames_its_wheel_and_the_others_run(acme: Acme) -> None:
    os.mkfifo(acme.root / "opt/acme/pipe")
    done = acme.doctor("--vendor", "acme", ACME_MODE="raise", ACME_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "error: mode: the check failed: RuntimeError: no mode" in done.stdout
    assert "error: ACME_VISIBLE_DEVICES: ACME_VISIBLE_DEVICES is empty" in done.stdout


def test_a_pipe_is_not_waited_for(acme: Acme) -> None:
    os.mkfifo(acme.root / "opt/acme/pipe")
    assert acme.doctor("--vendor", "acme").stdout.endswith("no problems found\n")


def test_an_unknown_vendor_lists_the_known_ones(acme: Acme) -> None:
    for name, hint in (
        ("acmee", "did you mean 'acme'? known: acme, acme-tool"),
        ("zzz", "known: acme, acme-tool"),
    ):
        done = acme.doctor("--vendor", name)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: no vendor {name!r}; {hint}")
        assert "such as sage-infer-ascend" in line
        assert "host-only" not in line
        assert "cpu" not in line


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("plain", 0, "note: vendor plain: its wheel declares no checks"),
        ("wrong", 1, "error: checks of acme-sage: acme_checks:Detector must be a VendorChecks of sage_infer.sdk"),
        ("lost", 1, "acme_checks:NOTHING"),
    ],
)  # fmt: skip
def test_wheels_without_checks_and_with_wrong_ones(acme: Acme, name: str, code: int, line: str) -> None:
    done = acme.doctor("--vendor", name)
    assert done.returncode == code
    assert line in done.stdout


def test_a_path_of_checks_that_leads_nowhere_is_listed_as_broken(acme: Acme) -> None:
    rows = acme.sage.json("infer", "plugin", "list", "--kind", "detector", **acme.environment())
    (lost,) = [row for row in rows if row["name"] == "lost"]
    assert lost["state"] == "broken"
    assert lost["reason"].startswith("checks acme_checks:NOTHING does not exist")


def test_doctor_without_a_vendor_names_those_whose_devices_are_here(acme: Acme) -> None:
    text = acme.doctor().stdout
    assert "note: vendor acme-tool: its devices are here" in text
    assert "fix: sage infer doctor --vendor acme-tool" in text
    assert "SAGE_INFER_ROOT is not a sage-infer variable" not in text


def test_verify_is_another_report(acme: Acme) -> None:
    done = acme.doctor("--vendor", "acme", "--verify")
    assert done.returncode == 2
    assert "--vendor checks no models" in done.stderr


@pytest.mark.parametrize("vendor", [(), ("--vendor", "acme")])
def test_a_report_for_a_bug_report_has_no_secrets(acme: Acme, vendor: tuple[str, ...]) -> None:
    secrets = {
        "ACME_LICENCE": "abc-very-secret", "VLLM_API_KEY": "key-very-secret", "HF_TOKEN": "hf_verysecretverysecret",
        "VLLM_PROXY": "http://me:verysecret@proxy:80", "AWS_SECRET_ACCESS_KEY": "aws-very-secret",
        "ACME_BOARD": "Serial: 2102313LNR10P5100123",
    }  # fmt: skip
    done = acme.doctor(*vendor, "--report", "report.txt", ACME_MODE="slow", **secrets)
    assert "wrote report.txt; read it before you share it" in done.stderr
    file = acme.sage.folder / "report.txt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "ACME_MODE=slow halves the speed" in text
    assert "ACME_MODE=slow\n" in text
    assert "/dev/acme_ctl\n" in text
    assert "torch-acme 2.1" in text
    assert "kit         8.1.0" in text
    assert "VLLM_API_KEY=[redacted]" in text
    assert "others are left out" in text
    assert "verysecret" not in text.replace("-", "").replace(" ", "")
    assert "2102313LNR10P5100123" not in text
    assert "HF_TOKEN" not in text
    assert str(acme.sage.folder) not in text  # the home folder here


def test_a_report_replaces_no_file(acme: Acme, tmp_path: Path) -> None:
    (acme.sage.folder / "taken.txt").write_text("mine")
    done = acme.doctor("--report", "taken.txt")
    assert done.returncode == 2
    assert "taken.txt exists; name a new file, or remove it" in done.stderr
    assert (acme.sage.folder / "taken.txt").read_text() == "mine"
    done = acme.doctor("--report", "none/such/report.txt")
    assert done.returncode == 2
    assert "cannot be written: No such file or directory" in done.stderr


def test_a_report_of_a_broken_configuration(acme: Acme) -> None:
    (acme.sage.folder / "sage_infer.yaml").write_text("infrence: {}\n")
    done = acme.doctor("--report", "report.txt")
    assert done.returncode == 1
    assert "error: configuration: " in (acme.sage.folder / "report.txt").read_text()
