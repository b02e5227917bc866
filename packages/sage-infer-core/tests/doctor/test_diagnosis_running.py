"""Checks run beside each other, and what is shared of a machine has no secrets."""

from __future__ import annotations

import socket
import sys
import threading
from typing import NoReturn

import pytest
from sage_infer.cli.doctor_report import report_text
from sage_infer.sdk.diagnosis import Check, Finding, Machine, run_checks
from sage_infer.sdk.diagnosis.redaction import redacted, shareable_environment, without_secrets

SOURCE = ("https://example.com/1",)


def test_checks_that_fail_are_findings_of_their_own() -> None:
    def raises(machine: Machine) -> NoReturn:
        raise ValueError("two\nlines")

    def leaves(machine: Machine) -> NoReturn:
        sys.exit("bye")

    def finds(machine: Machine) -> list[Finding]:
        return [Finding(what=machine.variable("A"), fix="x")]

    checks = [
        Check(name=function.__name__, sources=SOURCE, find=function) for function in (raises, leaves, finds)
    ]
    found = run_checks(checks, Machine(environ={"A": "seen"}))
    assert [(check.name, finding.what, finding.severity) for check, finding in found] == [
        ("raises", "the check failed: ValueError: two lines", "error"),
        ("leaves", "the check failed: SystemExit: bye", "error"),
        ("finds", "seen", "error"),
    ]


def test_a_check_that_hangs_is_given_up() -> None:
    end = threading.Event()

    def hangs(machine: Machine) -> list[Finding]:
        end.wait()
        return []

    check = Check(name="hangs", sources=SOURCE, find=hangs)
    ((_, finding),) = run_checks([check], Machine(), limit_s=0)
    end.set()
    assert finding.what.startswith("the check did not finish within 0 s")
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("token hf_abcdefghijklmnop here", "token [redacted] here"),
        ("ghp_0123456789abcdefABCD", "[redacted]"),
        ("sk-proj-0123456789abcdef", "[redacted]"),
        ("https://user:pass@mirror.example/simple", "https://[redacted]@mirror.example/simple"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ('--api-key=abc {"access_key": "xyz"}', '--api-key=[redacted] {"access_key": "[redacted]"}'),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "[redacted]"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n[redacted]\nb"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("max_tokens 64, tokenizer 0.22", "max_tokens 64, tokenizer 0.22"),
        ("torch 2.9.0.post1+git4c901a4", "torch 2.9.0.post1+git4c901a4"),
    ],
)
def test_secrets_are_replaced(text: str, shared: str) -> None:
    assert without_secrets(text) == shared


def test_serial_numbers_are_replaced() -> None:
    assert redacted("Serial Number : 2102313LNR10P5100123") == "Serial Number : [redacted]"
    assert redacted("board 2102313LNR10P5100123 of Atlas 800I A2") == "board [redacted] of Atlas 800I A2"


def test_variables_are_shared_by_name() -> None:
    environ = {
        "VLLM_API_KEY": "x", "VLLM_PLUGINS": "ascend", "HOME": "/home/person", "AWS_SECRET_ACCESS_KEY": "x",
        "VLLM_PROXY": "http://me:pw@proxy:80", "ACME_BOARD": "SN: 12345ABCDE",
    }  # fmt: skip
    assert shareable_environment(environ, ("VLLM_*", "ACME_*")) == {
        "ACME_BOARD": "SN: [redacted]", "VLLM_API_KEY": "[redacted]", "VLLM_PLUGINS": "ascend",
        "VLLM_PROXY": "http://[redacted]@proxy:80",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("home", "host", "line"),
    [
        ("/home/ada", "node-7.lab", "[host] ~/bin /root"),
        ("/root", "node-7.lab", "[host] /home/ada/bin ~"),
        ("/", "node-7", "[host].lab /home/ada/bin /root"),
        ("/home/ada", "bin", "node-7.lab ~/bin /root"),
        ("/home/ada", "localhost", "node-7.lab ~/bin /root"),
    ],
)
def test_the_host_and_the_home_folder_are_not_named(
    home: str, host: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert f"\n{line}\n" in report_text("node-7.lab /home/ada/bin /root", (), ())
