"""Loading of the configuration, including the sections of installed plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from sage_infer.config_file.layers import LoadedConfig, read_layers
from sage_infer.config_file.settings import Config, config_class
from sage_infer.discovery.registry import Entry, Registry, discover
from sage_infer.errors import BackendUnavailable, ConfigError
from sage_infer.factories import load_object
from sage_infer.specs import ConfigSpec

__all__ = ["SECTION_WHEELS", "installed_config_class", "load_config", "section_templates"]

SECTION_WHEELS: Mapping[str, str] = {"serve": "sage-infer-serve", "llm": "sage-llm"}
"""Sections of other wheels, and the wheel that defines each."""


def load_config(
    path: Path | str | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Load the effective configuration.

    ``path`` is the file to read. By default the usual locations are searched, and the file is optional. ``flags``
    are values from the command line by key (``{"inference.backend": "vllm"}``); None means not set.
    ``flag_names`` maps a key to its flag (``{"inference.embedding_backend": "--backend"}``) if the flag differs from
    the last word of the key.

    Mappings (options, aliases) are merged entry by entry. For all other values, a higher layer replaces a lower one.
    SAGE_INFER_DISABLE adds to ``plugins.disabled``. A section of a wheel that is not installed is a warning.

    Raises:
        ConfigError: the file cannot be found or read.
        InvalidConfig: the configuration is invalid; the error lists every problem of every layer with its file and
            line, variable or flag.
    """
    installed = _installed()
    return read_layers(
        config_class(installed.classes), path, flags=flags, flag_names=flag_names, environ=environ,
        absent={
            section: f"it belongs to {wheel}, which is not installed (pip install {wheel})"
            for section, wheel in SECTION_WHEELS.items()
        },
        unusable=installed.unusable,
    )  # fmt: skip


def installed_config_class() -> type[Config]:
    """Return the configuration class with the sections of installed plug-ins."""
    return config_class(_installed().classes)


def section_templates() -> list[str]:
    """Return the text of each plug-in's section, or a comment with the reason if it cannot be loaded."""
    texts = []
    for entry in discover().config():
        if entry.fault is not None:
            texts.append(f"# section {entry.name}: {entry.fault.reason}\n")
            continue
        try:
            text: Any = load_object(entry.spec.template, what=_title(entry))
            if not isinstance(text, str):
                raise BackendUnavailable(f"{entry.spec.template} is a {type(text).__name__}, not a string")
        except BackendUnavailable as error:
            text = f"# section {entry.name}: {error.message}\n"
        texts.append(text)
    return texts


@frozen
class _Installed:
    """Classes of plug-ins' sections, and the reasons why other sections cannot be used, by name."""

    classes: tuple[tuple[str, type], ...] = ()
    unusable: Mapping[str, str] = attrs.field(factory=dict)


def _installed() -> _Installed:
    try:
        registry = discover()
    except ConfigError:
        return _Installed()  # reading the layers reports this problem together with all others
    return _sections_of(registry)


@cache
def _sections_of(registry: Registry) -> _Installed:
    classes: list[tuple[str, type]] = []
    unusable: dict[str, str] = {}
    for entry in registry.config():
        if entry.fault is not None:
            unusable[entry.name] = entry.fault.reason
            continue
        try:
            classes.append((entry.name, _settings_class(entry)))
        except BackendUnavailable as error:
            unusable[entry.name] = error.message
    return _Installed(tuple(classes), unusable)


def _settings_class(entry: Entry[ConfigSpec]) -> type:
    """Return the settings class of a section.

    Raises:
        BackendUnavailable: the class cannot be loaded, or a field has no default.
    """
    kind: Any = load_object(entry.spec.settings, what=_title(entry))
    if not (isinstance(kind, type) and attrs.has(kind)):
        raise BackendUnavailable(f"{_title(entry)}: {entry.spec.settings} is not an attrs class")
    bare = [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
    if bare:
        raise BackendUnavailable(
            f"{_title(entry)}: {entry.spec.settings} has no default for {', '.join(bare)}"
        )
    return kind


def _title(entry: Entry[ConfigSpec]) -> str:
    return f"section {entry.name!r} of {entry.plugin.distribution}"
