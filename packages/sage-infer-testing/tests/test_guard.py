"""A contract test cannot be switched off silently, and an xfail says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit_runs import run_module
from sage_infer_testing import ContractSuite, xfail

PREAMBLE = """
import pytest
from kit_reference.detector import ReferenceDetector
from sage_infer_testing import HardwareDetectorContract, xfail

class Base(HardwareDetectorContract):
    def make_detector(self):
        return ReferenceDetector()

class Broken(ReferenceDetector):
    def detect(self):
        return None
"""


def outcomes(events: list[dict[str, Any]]) -> dict[str, str]:
    return {event["name"]: event["outcome"] for event in events if event["event"] == "finished"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class TestIt(Base):\n    def test_leaves_no_trace(self): pass", "overrides the contract test"),
        ("class TestIt(Base):\n    test_leaves_no_trace = None", "removes the contract test"),
        ("class TestIt(Base):\n    @pytest.mark.skip\n    def test_leaves_no_trace(self): pass", "overrides"),
        ("class TestIt(Base):\n    @pytest.mark.xfail\n    def test_leaves_no_trace(self): pass", "overrides"),
        ("class TestIt(Base):\n    pytestmark = pytest.mark.skip(reason='later')", "is marked skip"),
        ("class TestIt(Base):\n    pytestmark = [pytest.mark.xfail(reason='later')]", "is marked xfail as a whole"),
        ("@pytest.mark.skip\nclass TestIt(Base):\n    pass", "is marked skip"),
        ("class TestIt(Base):\n    pass\nTestIt.test_leaves_no_trace = None", "cannot be replaced"),
        ("class TestIt(Base):\n    pass\ndel TestIt.test_leaves_no_trace", "cannot be deleted"),
        ("HardwareDetectorContract.test_leaves_no_trace = None", "cannot be replaced"),
        ("del HardwareDetectorContract.test_leaves_no_trace", "cannot be deleted"),
        ("class Mixin:\n    def test_leaves_no_trace(self): pass\nclass TestIt(Mixin, Base): pass", "Mixin overrides"),
        ("class Mixin:\n    test_leaves_no_trace = None\nclass TestIt(Mixin, Base): pass", "Mixin removes"),
    ],
)  # fmt: skip
def test_switching_off_fails_at_collection(body: str, message: str, tmp_path: Path) -> None:
    events = run_module(f"{PREAMBLE}\n{body}\n", tmp_path)
    (broken,) = [event for event in events if event["event"] == "broken"]
    assert message in broken["details"]
    assert "xfail(reason=…)" in broken["details"] or "skipif" in broken["details"]


def test_a_mark_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        if item.name == 'test_leaves_no_trace':\n"
        "            item.add_marker(pytest.mark.skip(reason='quietly'))\n"
    )
    events = run_module(PREAMBLE + "\nclass TestIt(Base):\n    pass\n", tmp_path)
    found = outcomes(events)
    assert found["test_leaves_no_trace"] == "skipped"
    assert found["test_nothing_is_switched_off"] == "failed"
    reason = next(
        e["reason"] for e in events if e.get("name") == "test_nothing_is_switched_off" and "reason" in e
    )
    assert "test_leaves_no_trace" in reason


def test_xfail_runs_the_contract_test(tmp_path: Path) -> None:
    body = """
class TestIt(Base):
    def make_detector(self):
        return Broken()

    @xfail(reason="no profile yet, issue 7")
    def test_profile_survives_json(self): raise SystemExit("never run")

class TestSub(TestIt):
    pass

class TestFixed(Base):
    @xfail(reason="was broken once")
    def test_profile_survives_json(self): ...
"""
    events = run_module(PREAMBLE + body, tmp_path, "-k", "survives_json")
    found = {e["suite"]: e for e in events if e["event"] == "finished"}
    assert found["TestIt"]["outcome"] == found["TestSub"]["outcome"] == "xfailed"
    assert found["TestIt"]["reason"] == "no profile yet, issue 7"
    assert found["TestFixed"]["outcome"] == "failed", "an xfail that passes must be taken away"


def test_own_tests_and_other_attributes_are_free(tmp_path: Path) -> None:
    body = """
class TestIt(Base):
    pytestmark = [pytest.mark.skipif(False, reason="no device here")]
    note = 1

    async def test_of_the_vendor(self, detector):
        assert detector.detect().memory_tiers

    def test_with_parameters(self, tmp_path):
        assert tmp_path.exists()

TestIt.note = 2
del TestIt.note
"""
    found = outcomes(run_module(PREAMBLE + body, tmp_path))
    assert found["test_of_the_vendor"] == found["test_with_parameters"] == "passed"
    assert found["test_leaves_no_trace"] == "passed"
    assert "failed" not in found.values()


def test_xfail_wants_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        xfail(reason=" ")


def test_every_contract_test_says_how_to_fix() -> None:
    import sage_infer_testing
    from sage_infer_testing.advice import advice_of, summary_of
    from sage_infer_testing.guard import contract_tests

    kits = [getattr(sage_infer_testing, name) for name in sage_infer_testing.__all__]
    for kit in (kit for kit in kits if isinstance(kit, type)):
        assert issubclass(kit, ContractSuite)
        for name, test in contract_tests(kit).items():
            assert summary_of(test), f"{kit.__name__}.{name} does not say what it asserts"
            assert advice_of(test), f"{kit.__name__}.{name} does not say how to fix its failure"


def test_unset_kits_say_what_to_override(tmp_path: Path) -> None:
    source = "from sage_infer_testing import *\n" + "\n".join(
        f"class Test{i}({kit}): pass"
        for i, kit in enumerate(
            ("HardwareDetectorContract", "KVStoreContract", "TransportContract", "PluginContract",
             "InferenceBackendContract")
        )
    )  # fmt: skip
    events = run_module(
        source, tmp_path, "-k", "shape or blocks_come_back or heavy or survives_json or knows"
    )
    reasons = [e["reason"] for e in events if e["event"] == "finished" and e["outcome"] == "failed"]
    assert all("must override" in r or "must set" in r or "not run" in r for r in reasons), reasons
    assert len(reasons) >= 5


def test_unknown_names_of_the_package() -> None:
    import sage_infer_testing

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sage_infer_testing.Nothing
