"""The kit for hardware detectors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from attrs import evolve, fields
from sage_infer.contracts import HardwareDetector, HardwareMeter
from sage_infer.errors import SageInferError
from sage_infer.schemas import Figure, HardwareProfile
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["HardwareDetectorContract"]

_LOCAL = (socket.AF_UNIX,) if hasattr(socket, "AF_UNIX") else ()


class HardwareDetectorContract(ContractSuite, kit=True):
    """Guarantees of a ``HardwareDetector``, with or without its hardware. Override ``make_detector``.

    Attributes:
        hardware: hardware names that it reports, as in ``DetectorSpec.hardware``; empty skips this check.
        engines: modules that detection must not import.
    """

    hardware: ClassVar[Collection[str]] = ()
    engines: ClassVar[Collection[str]] = (
        "torch",
        "vllm",
        "openvino",
        "tensorflow",
        "jax",
        "transformers",
        "cupy",
    )

    def make_detector(self) -> HardwareDetector:
        """The detector."""
        pytest.fail(f"{type(self).__name__} must override make_detector()")

    @pytest.fixture
    def detector(self) -> Any:
        """A fresh detector."""
        return self.make_detector()

    @pytest.fixture
    def no_tools(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A machine whose search path is empty."""
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_has_the_shape_of_its_protocol(self, detector: Any) -> None:
        """``detect`` exists and takes no arguments.

        How to fix: ``def detect(self) -> HardwareProfile``, not async.
        """
        problems = shape_problems(detector, HardwareDetector)
        assert not problems, f"not a HardwareDetector: {'; '.join(problems)}"

    def test_profile_survives_json(self, detector: Any) -> None:
        """``detect`` returns a ``HardwareProfile`` that survives a round trip through JSON, with or without hardware.

        How to fix: return an empty profile if there is no hardware; use plain numbers and strings in all fields.
        """
        profile = detector.detect()
        assert isinstance(profile, HardwareProfile), f"detect() returned a {type(profile).__name__}"
        assert from_json(to_json(profile), HardwareProfile) == profile

    def test_detects_the_same_twice(self, detector: Any) -> None:
        """Two calls, and a second detector, return equal profiles: a profile has only static facts.

        How to fix: leave out changing values, such as free memory, clocks and temperatures.
        """
        first = detector.detect()
        assert detector.detect() == first, "a second detect() differs"
        assert self.make_detector().detect() == first, "a second detector differs"

    def test_says_where_it_knows_it_from(self, detector: Any) -> None:
        """A non-empty profile names its sources, and so does every figure.

        How to fix: put the tool and its version, or the file, into ``HardwareProfile.sources`` and ``Figure.source``.
        """
        profile = detector.detect()
        if profile.accelerators or profile.links or profile.memory_tiers:
            assert profile.sources, "the profile has contents and no sources"
        _assert_sources(profile)

    def test_reports_its_own_hardware(self, detector: Any) -> None:
        """Accelerators are of the declared ``hardware``, ordered by name and index.

        How to fix: use the name of ``DetectorSpec.hardware``; sort before returning.
        """
        found = [(a.hardware_backend, a.index) for a in detector.detect().accelerators]
        assert found == sorted(found), f"accelerators are not in order: {found}"
        strangers = {name for name, _ in found} - set(self.hardware)
        assert not self.hardware or not strangers, f"reports {strangers}, declared are {set(self.hardware)}"

    def test_links_join_what_is_there(self, detector: Any) -> None:
        """No link connects an endpoint to itself, and all accelerators named by links are listed.

        How to fix: use endpoint names such as ``cuda:0``, ``numa:1`` and ``host``, with the accelerator's own index.
        """
        profile = detector.detect()
        names = {a.hardware_backend for a in profile.accelerators}
        devices = {f"{a.hardware_backend}:{a.index}" for a in profile.accelerators}
        for link in profile.links:
            assert link.source != link.target, f"a link from {link.source} to itself"
            for end in (link.source, link.target):
                assert end.partition(":")[0] not in names or end in devices, (
                    f"a link names {end}, which is not listed"
                )

    @pytest.mark.usefixtures("no_tools")
    def test_missing_tools_are_no_crash(self, detector: Any) -> None:
        """Without any command-line tool on the path, ``detect`` returns a profile or a ``SageInferError``.

        How to fix: catch ``FileNotFoundError`` when calling the tool. If the hardware is certainly absent, return an
        empty profile; otherwise raise an error that names the missing tool.
        """
        try:
            profile = detector.detect()
        except SageInferError as error:
            if not str(error):
                pytest.fail(f"{type(error).__name__} without a message")
        else:
            assert isinstance(profile, HardwareProfile), f"detect() returned a {type(profile).__name__}"

    def test_leaves_no_trace(self, detector: Any) -> None:
        """``detect`` does not change the environment or the working directory, and leaves no child process.

        How to fix: pass ``env=`` to the tool instead of setting variables, and wait for it.
        """
        before, folder = dict(os.environ), os.getcwd()
        detector.detect()
        changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
        assert not changed, f"environment variables changed: {', '.join(sorted(changed))}"
        assert os.getcwd() == folder, f"the working directory is now {os.getcwd()}"
        left = [p for p in getattr(subprocess, "_active", None) or [] if p.poll() is None]
        assert not left, f"child processes still run: {left}"

    def test_stays_on_this_machine(self, detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """``detect`` opens no network connection.

        How to fix: query the driver, the vendor's library or files, not cloud metadata services.
        """
        asked: list[str] = []

        def connect(self: socket.socket, address: Any) -> None:
            if self.family in _LOCAL:
                return real(self, address)
            asked.append(str(address))
            raise OSError("no network in this test")

        real = socket.socket.connect
        monkeypatch.setattr(socket.socket, "connect", connect)
        detector.detect()
        assert not asked, f"connected to {', '.join(asked)}"

    def test_loads_no_engine(self, detector: Any) -> None:
        """``detect`` imports no engine, because this would initialize the device.

        How to fix: use the vendor's management library, not its framework.
        """
        before = set(sys.modules)
        detector.detect()
        loaded = sorted(set(self.engines) & (set(sys.modules) - before))
        assert not loaded, f"detect() imported {', '.join(loaded)}"

    def test_works_in_any_thread(self, detector: Any) -> None:
        """``detect`` returns the same profile in several threads simultaneously.

        How to fix: keep no state between calls, or protect it with a lock; pair each initialization of the library with
        a shutdown.
        """
        expected = detector.detect()
        with ThreadPoolExecutor(3) as pool:
            for profile in pool.map(lambda _: detector.detect(), range(6)):
                assert profile == expected, "detect() in another thread differs"

    def test_measuring_only_adds_figures(self, detector: Any) -> None:
        """``measure`` only fills in measured figures and latencies, each with its source.

        How to fix: ``def measure(self, profile, progress) -> HardwareProfile``; fill ``measured_…`` and ``latency_us``
        of the given profile, report shares of 0 to 1, and add a note for each figure that cannot be measured. A
        detector that cannot measure must not have ``measure``.
        """
        if not hasattr(detector, "measure"):
            pytest.skip("the detector does not measure")
        problems = shape_problems(detector, HardwareMeter)
        assert not problems, f"not a HardwareMeter: {'; '.join(problems)}"
        shares: list[float] = []
        before = detector.detect()
        measured = detector.measure(before, lambda what, share: shares.append(share))
        assert isinstance(measured, HardwareProfile), f"measure() returned a {type(measured).__name__}"
        assert from_json(to_json(measured), HardwareProfile) == measured
        assert _unmeasured(measured) == _unmeasured(before), "measure() changed more than measured figures"
        assert measured.notes[: len(before.notes)] == before.notes, "measure() changed notes of detect()"
        assert all(0 <= share <= 1 for share in shares), f"progress reported {shares}"
        _assert_sources(measured)


def _unmeasured(profile: HardwareProfile) -> HardwareProfile:
    """Return the profile without the fields that ``measure`` fills in."""

    def without(part: Any) -> Any:
        names = [
            f.name for f in fields(type(part)) if f.name.startswith("measured_") or f.name == "latency_us"
        ]
        return evolve(part, **dict.fromkeys(names))

    return evolve(
        profile,
        links=[without(link) for link in profile.links],
        memory_tiers=[without(tier) for tier in profile.memory_tiers],
        notes=(),
    )


def _assert_sources(profile: HardwareProfile) -> None:
    for figure in _figures(profile):
        assert figure.source.strip(), f"{figure} has no source"


def _figures(profile: HardwareProfile) -> Iterator[Figure]:
    for part in (*profile.accelerators, *profile.links, *profile.memory_tiers):
        for attribute in fields(cast(Any, type(part))):
            value = getattr(part, attribute.name)
            yield from (
                v
                for v in (value.values() if isinstance(value, Mapping) else [value])
                if isinstance(v, Figure)
            )
