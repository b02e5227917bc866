"""Run every installed detector in isolation and merge their profiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from attrs import define, evolve
from sage_infer.discovery import Entry, Registry, discover
from sage_infer.discovery.readiness import missing_requirements
from sage_infer.errors import SageInferError
from sage_infer.factories import is_plugins_fault, load_object
from sage_infer.schemas import HardwareProfile
from sage_infer.specs import DetectorSpec

from sage_infer_hal.merge import merge_profiles

__all__ = ["detect_machine", "find_detectors"]

TIME_LIMIT_S = 10.0
"""Time limit of a detector; after it, the profile is returned without that detector."""


@define(eq=False)
class _Asked:
    """One detector and its result: a profile, or the reason why there is none."""

    entry: Entry[DetectorSpec]
    detector: object = None
    profile: HardwareProfile | None = None
    reason: str = ""

    def run(self) -> None:
        spec = self.entry.spec
        try:
            self.detector = detector = load_object(spec.factory, what=f"detector {spec.name!r}")()
            profile: object = detector.detect()
        except SageInferError as error:
            self.reason = error.message
        except BaseException as error:  # whatever a plug-in raises becomes a note about it, also SystemExit
            self.reason = f"{type(error).__name__}: {error}"
        else:
            if isinstance(profile, HardwareProfile):
                self.profile = profile
            else:
                self.reason = f"detect() returned a {type(profile).__name__}, not a HardwareProfile"


def find_detectors(registry: Registry | None = None) -> list[Entry[DetectorSpec]]:
    """Every installed detector by name, including those with faults."""
    return (registry or discover()).detectors()


def detect_machine(
    *, measure: Callable[[str, float], None] | None = None, registry: Registry | None = None
) -> HardwareProfile:
    """The machine as all installed detectors see it. A detector that fails or hangs becomes a note with its reason.

    With ``measure``, detectors that can measure do so one after the other and report their progress to it.
    """
    asked: list[_Asked] = []
    notes: list[str] = []
    for entry in find_detectors(registry):
        missing = missing_requirements(entry.spec.requires)
        if entry.fault is not None:
            notes.append(_note(entry, entry.fault.reason))
        elif missing:
            needs = ", ".join(f"{need} ({found})" for need, found in missing)
            fix = entry.spec.install or "pip install " + " ".join(f"'{need}'" for need, _ in missing)
            notes.append(_note(entry, f"needs {needs}: {fix}"))
        else:
            asked.append(_Asked(entry))
    _ask(asked)
    notes += [_note(one.entry, one.reason) for one in asked if one.profile is None]
    merged = HardwareProfile()
    for one in asked:
        if one.profile is None:
            continue
        if measure is not None:
            notes += _measure(one, one.profile, measure)
        try:
            merged = merge_profiles([merged, one.profile])
        except SageInferError as error:
            notes.append(_note(one.entry, error.message))
    return evolve(merged, notes=(*merged.notes, *notes))


def _ask(asked: Iterable[_Asked]) -> None:
    """Run all simultaneously; threads that hang in a driver do not keep the process from exiting."""
    threads = [(one, threading.Thread(target=one.run, daemon=True)) for one in asked]
    for _, thread in threads:
        thread.start()
    for one, thread in threads:
        thread.join(TIME_LIMIT_S)
        if thread.is_alive():
            one.reason = f"no answer within {TIME_LIMIT_S:g} s; the driver may hang, see dmesg"


def _measure(one: _Asked, profile: HardwareProfile, progress: Callable[[str, float], None]) -> list[str]:
    """Let the detector measure; returns notes if that failed."""
    from sage_infer.contracts import HardwareMeter  # imported late: the contracts are slow to import

    if not isinstance(one.detector, HardwareMeter):
        return []
    try:
        measured: object = one.detector.measure(profile, progress)
    except BaseException as error:
        if not is_plugins_fault(error):
            raise
        return [_note(one.entry, f"could not measure: {error}")]
    if not isinstance(measured, HardwareProfile):
        return [_note(one.entry, f"measure() returned a {type(measured).__name__}, not a HardwareProfile")]
    one.profile = measured
    return []


def _note(entry: Entry[DetectorSpec], reason: str) -> str:
    return f"detector {entry.name} ({entry.plugin.distribution}): {' '.join(reason.split())}"
