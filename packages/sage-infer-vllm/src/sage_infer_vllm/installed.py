"""The installed vLLM, and whether it meets a platform's requirements. Reads metadata only; imports nothing."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from sage_infer.discovery.readiness import pair_problems
from sage_infer.errors import BackendUnavailable

from sage_infer_vllm.platform import Platform

__all__ = ["check_installed", "installed_engine", "missing", "platform_plugins", "plugin_versions"]

PLUGIN_GROUP = "vllm.platform_plugins"


def platform_plugins() -> dict[str, str]:
    """Installed platform plug-ins of vLLM: entry point name → distribution. Does not load them."""
    found = importlib.metadata.entry_points(group=PLUGIN_GROUP)
    return {
        entry.name: entry.dist.name if entry.dist is not None else "unknown distribution" for entry in found
    }


def installed_engine(platform: Platform) -> tuple[str, str] | None:
    """Distribution and version of the installed vLLM for the platform; None if missing."""
    for name in platform.engine:
        version = _version(name)
        if version is not None:
            return name, version
    return None


def plugin_versions(platform: Platform) -> dict[str, str]:
    """Installed versions of the distributions that provide the platform's plug-in."""
    found = {name: _version(name) for name in platform.plugin_distributions}
    return {name: version for name, version in found.items() if version is not None}


def missing(platform: Platform) -> list[str]:
    """Missing requirements of the platform, one line each with the install command; empty if complete."""
    lines = []
    engine = installed_engine(platform)
    wanted = " or ".join(f"'{name}{specifier}'" for name, specifier in platform.engine.items())
    if engine is None:
        lines.append(f"vLLM is not installed; pip install {wanted}")
    else:
        name, version = engine
        if not _fits(version, platform.engine[name]):
            lines.append(
                f"{name} {version} is installed, expected {name}{platform.engine[name]}; pip install {wanted}"
            )
        elif platform.engine_label is not None and platform.engine_label not in (
            Version(version).local or ""
        ):
            lines.append(
                f"{name} {version} is installed, expected the vendor's build, with +{platform.engine_label} in its "
                "version; install the vendor's wheel"
            )
    both = [name for name in platform.engine if _version(name) is not None]
    if len(both) > 1:
        lines.append(
            f"{' and '.join(both)} are both installed and overwrite each other; pip uninstall all of them, "
            "then install one"
        )
    return lines + (_plugin_problems(platform, platform_plugins()) or pair_problems(platform.pairs))


def _plugin_problems(platform: Platform, plugins: Mapping[str, str]) -> list[str]:
    lines = [
        f"{name}{specifier} is not installed; pip install '{name}{specifier}'"
        if (version := _version(name)) is None
        else f"{name} {version} is installed, expected {name}{specifier}; pip install '{name}{specifier}'"
        for name, specifier in platform.plugin_distributions.items()
        if (version := _version(name)) is None or not _fits(version, specifier)
    ]
    if platform.plugin is not None and platform.plugin not in plugins and not lines:
        lines.append(f"no distribution provides the vLLM platform plug-in {platform.plugin!r}; install it")
    others = {name: dist for name, dist in plugins.items() if name != platform.plugin}
    if platform.plugin is not None and others:
        named = ", ".join(f"{name} ({dist})" for name, dist in sorted(others.items()))
        lines.append(f"other vLLM platform plug-ins are installed, but a process can use only one: {named}")
    return lines


def check_installed(platform: Platform) -> None:
    """Check the platform's requirements.

    Raises:
        BackendUnavailable: requirements are missing; the message contains every line of ``missing``.
    """
    problems = missing(platform)
    if problems:
        raise BackendUnavailable(f"backend {platform.backend_name!r} cannot start: {'; '.join(problems)}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, specifier: str) -> bool:
    # Vendors' builds have local versions and pre-releases (0.18.1+das), which count as their base release.
    return not specifier or SpecifierSet(specifier).contains(version, prereleases=True)
