"""``sage infer doctor --vendor NAME``: one vendor's stack, by the checks that its wheel declares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sage_infer.errors import InvalidRequest, SageInferError

if TYPE_CHECKING:
    from sage_infer.discovery import BackendInfo, Entry, Registry
    from sage_infer.sdk.diagnosis import VendorChecks
    from sage_infer.specs import DetectorSpec

__all__ = ["as_problem", "checked_hardware", "vendor_report"]

Problem = dict[str, Any]


def vendor_report(name: str, registry: Registry, backends: Iterable[BackendInfo]) -> dict[str, Any]:
    """The stack of a vendor: parts with versions, device files, backends, and ``problems``.

    Raises:
        InvalidRequest: no installed wheel has hardware or a detector of this name; the message lists the known ones.
    """
    from sage_infer.sdk.diagnosis import Machine, run_checks

    detectors, hardware = _chosen(name, registry)
    rows = [row for row in backends if row.spec is not None and not hardware.isdisjoint(row.spec.hardware)]
    problems = list(_unmet(rows, hardware))
    machine = Machine.here()
    parts: dict[str, str] = {}
    nodes: list[str] = []
    variables: list[str] = []
    for entry in detectors:
        if entry.spec.checks is None:
            continue
        try:
            declared = _loaded(entry)
        except SageInferError as error:
            problems.append(as_problem("error", f"checks of {entry.plugin.distribution}", error.message, ""))
            continue
        parts |= {part.name: part.version(machine) for part in declared.parts}
        nodes += [path for pattern in declared.nodes for path in machine.paths(pattern)]
        variables += declared.variables
        for check, finding in run_checks(declared.checks, machine):
            problems.append(
                {
                    **as_problem(finding.severity, check.name, finding.what, finding.fix),
                    "sources": list(check.sources),
                }
            )
    if any(problem["where"] == "device files" for problem in problems):
        # It says more than that the backends found no hardware.
        problems = [problem for problem in problems if problem["where"] != "hardware"]
    checked = [entry.plugin.distribution for entry in detectors if entry.spec.checks is not None]
    if not checked:
        what = "its wheel declares no checks; only the needs of its backends were looked for"
        problems.append(as_problem("note", f"vendor {name}", what, ""))
    return {
        "vendor": name,
        "checked": checked,
        "parts": [{"name": part, "version": version} for part, version in parts.items()],
        "devices": nodes,
        "variables": variables,
        "backends": [row.as_dict() for row in rows],
        "problems": problems,
    }


def checked_hardware(registry: Registry) -> list[str]:
    """Vendors whose devices this machine has, and whose wheels declare checks, by the names of their detectors."""
    from sage_infer.discovery.readiness import missing_hardware

    return [
        entry.name
        for entry in registry.detectors()
        if entry.fault is None
        and entry.spec.checks is not None
        and not missing_hardware(entry.spec, registry)
    ]


def _chosen(name: str, registry: Registry) -> tuple[list[Entry[DetectorSpec]], set[str]]:
    """The detectors of a vendor, and the names of its hardware."""
    detectors = [entry for entry in registry.detectors() if entry.fault is None]
    backends = [entry for entry in registry.backends() if entry.fault is None]
    known = {
        *(entry.name for entry in detectors),
        *(kind for entry in detectors for kind in entry.spec.hardware),
    }
    known |= {kind for entry in backends for kind in entry.spec.hardware}
    known = {one for one in known if one != "cpu" and not _is_host(one, detectors)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        listed = ", ".join(sorted(known)) or "none"
        raise InvalidRequest(
            f"no vendor {name!r}; {hint}known: {listed} (a vendor's checks come with its wheel, such as "
            "sage-infer-ascend)"
        )
    chosen = [entry for entry in detectors if name == entry.name or name in entry.spec.hardware]
    return chosen, {name, *(kind for entry in chosen for kind in entry.spec.hardware)}


def _is_host(name: str, detectors: Iterable[Entry[DetectorSpec]]) -> bool:
    """Whether a name is that of a detector for the host only."""
    return any(entry.name == name and entry.spec.hardware == {"cpu"} for entry in detectors)


def _loaded(entry: Entry[DetectorSpec]) -> VendorChecks:
    from sage_infer.errors import PluginFailed
    from sage_infer.factories import load_object
    from sage_infer.sdk.diagnosis import VendorChecks

    path = entry.spec.checks
    assert path is not None
    found: object = load_object(path, what=f"detector {entry.name!r} of {entry.plugin.distribution}")
    if not isinstance(found, VendorChecks):
        raise PluginFailed(
            f"{path} must be a VendorChecks of sage_infer.sdk.diagnosis, got {type(found).__name__}"
        )
    return found


def _unmet(rows: Iterable[BackendInfo], hardware: set[str]) -> Iterator[Problem]:
    """What the backends lack, each requirement once; of backends for other hardware, too, as notes."""
    seen = set()
    for row in rows:
        severity = "error" if row.spec is not None and row.spec.hardware <= hardware else "note"
        lines = [(missing.what, missing.found, missing.install) for missing in row.missing]
        if not lines and row.state not in ("ready", "disabled"):
            lines = [(f"backend {row.name}", row.reason, row.fix)]
        for line in lines:
            if line not in seen:
                seen.add(line)
                yield as_problem(severity, *line)


def as_problem(severity: str, where: str, what: str, fix: str = "") -> Problem:
    """One problem as data."""
    return {"severity": severity, "where": where, "what": what, "fix": fix}
