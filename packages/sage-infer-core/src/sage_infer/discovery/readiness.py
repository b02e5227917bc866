"""Requirements for opening an item on this machine: which are missing, and how to install them."""

from __future__ import annotations

import glob
import importlib.metadata
import os
from collections.abc import Collection, Iterable, Mapping

from attrs import frozen

from sage_infer.config_file.search import ROOT_VARIABLE
from sage_infer.discovery.registry import Registry
from sage_infer.specs import BackendSpec, DetectorSpec, Need

__all__ = [
    "ROOT_VARIABLE", "Missing", "install_command", "missing_hardware", "missing_requirements", "pair_problems",
    "unmet_needs",
]  # fmt: skip

_NOT_INSTALLED = "not installed"


@frozen(kw_only=True)
class Missing:
    """One missing requirement of a backend: what, what was found instead, and how to install it."""

    what: str
    found: str
    install: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found}; {self.install}"


def missing_requirements(requires: Mapping[str, str]) -> list[tuple[str, str]]:
    """Unmet requirements, each with what was found instead."""
    missing = []
    for names, specifier in requires.items():
        found = [_found(name.strip(), specifier) for name in names.split("|")]
        if "" not in found:
            wanted = " | ".join(name.strip() + specifier for name in names.split("|"))
            missing.append((wanted, next((text for text in found if text != _NOT_INSTALLED), _NOT_INSTALLED)))
    return missing


def unmet_needs(needs: Iterable[Need]) -> list[Missing]:
    """Unmet needs of this machine. Checks files, variables and metadata; imports and runs nothing."""
    found = [(need, _wrong(need)) for need in needs]
    return [Missing(what=need.what, found=wrong, install=need.install) for need, wrong in found if wrong]


def _wrong(need: Need) -> str:
    """What was found instead; empty if the need is met."""
    return (
        _no_path(need)
        or _no_distribution(need)
        or _no_label(need)
        or "; ".join(pair_problems(need.pairs))
        or _no_entry_point(need)
    )


def _no_path(need: Need) -> str:
    if not (need.files or need.variables):
        return ""
    if _any_exists(need.files):
        return ""
    if any(os.path.exists(os.environ.get(variable) or "") for variable in need.variables):
        return ""
    places = [*need.files, *(f"${variable}" for variable in need.variables)]
    return f"none of {', '.join(places)} exists" if len(places) > 1 else f"{places[0]} does not exist"


def _no_distribution(need: Need) -> str:
    return ", ".join(f"{wanted} {found}" for wanted, found in missing_requirements(need.distributions))


def _no_label(need: Need) -> str:
    for name, label in need.labels.items():
        installed = importlib.metadata.version(name)
        if label not in installed.partition("+")[2]:
            return f"{name} {installed} is installed, expected the vendor's build (+{label})"
    return ""


def pair_problems(pairs: Collection[Mapping[str, str]]) -> list[str]:
    """One line if the installed releases of these distributions are in none of the combinations; else empty.

    Empty as well if one of the distributions is missing.
    """
    found = {name: _installed(name) for pair in pairs for name in pair}
    if not pairs or None in found.values():
        return []
    if any(all(_found(name, specifier) == "" for name, specifier in pair.items()) for pair in pairs):
        return []
    installed = " and ".join(f"{name} {version}" for name, version in found.items())
    known = ", ".join(" with ".join(name + specifier for name, specifier in pair.items()) for pair in pairs)
    return [f"{installed} do not work together; install {known}"]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _no_entry_point(need: Need) -> str:
    if need.entry_point is None:
        return ""
    group, _, name = need.entry_point.partition(":")
    if importlib.metadata.entry_points(group=group, name=name):
        return ""
    return f"no distribution has the entry point {name} of {group}"


def _found(name: str, specifier: str) -> str:
    """Problem of a distribution; empty if it is installed in a matching version."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _NOT_INSTALLED
    if specifier:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(specifier).contains(installed, prereleases=True):
            return f"{installed} is installed"
    return ""


def install_command(spec: BackendSpec, registry: Registry) -> str:
    """The plug-in's own command for this machine, else empty."""
    for hardware, command in spec.install_for.items():
        if hardware == "cpu" or _any_exists(_patterns(spec, {hardware}, registry)):
            return command
    return spec.install or ""


def missing_hardware(spec: BackendSpec | DetectorSpec, registry: Registry) -> str:
    """Why none of a spec's hardware was found; empty if some was."""
    if "cpu" in spec.hardware:
        return ""
    patterns = _patterns(spec, spec.hardware, registry)
    names = " or ".join(sorted(spec.hardware))
    if not patterns:
        return f"needs {names}, but no installed detector can look for it"
    if _any_exists(patterns):
        return ""
    return f"needs {names}; looked for {', '.join(patterns)} and found none"


def _patterns(spec: BackendSpec | DetectorSpec, hardware: Collection[str], registry: Registry) -> list[str]:
    """Where to look for the hardware: as declared by the backend, else by the installed detectors."""
    return list(spec.device_nodes) or [
        pattern
        for detector in registry.detectors()
        if detector.fault is None and not detector.spec.hardware.isdisjoint(hardware)
        for pattern in detector.spec.device_nodes
    ]


def _any_exists(patterns: Iterable[str]) -> bool:
    root = os.environ.get(ROOT_VARIABLE, "")
    return any(next(glob.iglob(root + pattern), None) is not None for pattern in patterns)
