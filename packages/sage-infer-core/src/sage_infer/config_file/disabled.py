"""Plug-ins disabled by the configuration. Must be cheap, as every command calls it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sage_infer.config_file.search import DISABLE_VARIABLE, find_config_file, read_text, split_names

__all__ = ["disabled_plugins"]

_DISABLED_VARIABLE = "SAGE_INFER_PLUGINS_DISABLED"

# A line with `disabled` that disables nothing; any other line with this word needs a YAML parser.
_NOTHING_DISABLED = re.compile(r"\s*(#.*|disabled\s*:\s*\[\s*\]\s*(#.*)?)")


def disabled_plugins(
    path: Path | str | None = None, environ: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Names disabled by SAGE_INFER_DISABLE, SAGE_INFER_PLUGINS_DISABLED and ``plugins.disabled``.

    Reads nothing else in the file, and parses it only if it may disable something: ``load_config`` reports
    mistakes in other sections.

    Raises:
        ConfigError: the file is missing, unreadable or not YAML, or the value is not a list of names.
    """
    environ = os.environ if environ is None else environ
    named = split_names(environ.get(DISABLE_VARIABLE, ""))
    file = find_config_file(path, environ)
    if not environ.get(_DISABLED_VARIABLE, "").strip():
        text = "" if file is None else read_text(file)
        relevant = [line for line in text.splitlines() if "disabled" in line or "\\" in line]
        if all(_NOTHING_DISABLED.fullmatch(line) for line in relevant):
            return frozenset(named)
        listed = _listed(text)
        if listed is not None:
            return frozenset(named) | frozenset(listed)
    from sage_infer.config_file.layers import read_layers
    from sage_infer.config_file.settings import config_class

    # Sections of plug-ins are not known yet, and mistakes in others are for ``load_config`` to report.
    return frozenset(
        read_layers(config_class(()), file, environ=environ, only="plugins").config.plugins.disabled
    )


def _listed(text: str) -> list[str] | None:
    """``plugins.disabled`` if it is a plain list of names, else None: ``load_config`` reports the reason."""
    from sage_infer.config_file.document import InvalidConfig, parse

    try:
        document = parse(text)
    except InvalidConfig:
        return None
    if document.problems or not isinstance(document.data, dict):
        return None
    section = document.data.get("plugins") or {}
    listed = (section.get("disabled") or []) if isinstance(section, dict) else None
    if isinstance(listed, list) and all(isinstance(name, str) and name for name in listed):
        return listed
    return None
