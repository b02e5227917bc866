"""Defaults < file < environment < flags, checked layer by layer so that every problem names its origin."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import attrs
from attrs import field, frozen

from sage_infer.config_file.document import InvalidConfig, parse
from sage_infer.config_file.environment import variable_name, variables_given
from sage_infer.config_file.search import DISABLE_VARIABLE, find_config_file, read_text, split_names
from sage_infer.config_file.settings import Config, keys
from sage_infer.errors import ConfigError, SchemaError
from sage_infer.schemas.codec import from_dict

__all__ = ["LoadedConfig", "read_layers"]

SectionT = TypeVar("SectionT")
Data = dict[str, dict[str, Any]]
DEFAULT = "default"

# Options belong to one backend, a profile to one model; they are dropped when a higher layer names another one.
_OPTIONS_OF = (
    ("backend", "options"), ("backend", "quant_profile"), ("model", "quant_profile"),
    ("embedding_backend", "embedding_options"),
)  # fmt: skip


@frozen
class LoadedConfig:
    """The configuration, the origin of each value, and warnings about likely mistakes.

    Attributes:
        config: the values.
        path: the file that was read; None without a file.
        warnings: one line each, such as an unknown SAGE_INFER_ variable.
    """

    config: Config
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    _origins: Mapping[str, str] = field(factory=dict, alias="origins")

    def origin(self, key: str) -> str:
        """Origin of ``key`` (``inference.backend``): default, ``file PATH:LINE``, environment or flag.

        Raises:
            ConfigError: there is no such key.
        """
        known = dict(self._values())
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"no configuration key {key!r}; {hint}")
        return self._origins.get(key, DEFAULT)

    def rows(self) -> list[tuple[str, Any, str]]:
        """Every key with its value and origin, mappings entry by entry, for ``sage infer config show``."""
        return [(key, value, self._origins.get(key, DEFAULT)) for key, value in self._values()]

    def section(self, kind: type[SectionT]) -> SectionT:
        """A plug-in's section, by the class of its settings.

        Raises:
            ConfigError: no installed plug-in defines the section.
        """
        for section in attrs.fields(type(self.config)):
            value = getattr(self.config, section.name)
            if type(value) is kind:
                return value
        raise ConfigError(
            f"no installed plug-in defines the section of {kind.__module__}.{kind.__qualname__}"
        )

    def path_value(self, key: str, value: str) -> Path:
        """A configured path; relative paths in the file are relative to the file's folder."""
        path = Path(value).expanduser()
        if self.path is not None and self._origins.get(key, "").startswith("file "):
            path = self.path.parent / path
        return path.absolute()

    def _values(self) -> Iterator[tuple[str, Any]]:
        for section in attrs.fields(type(self.config)):
            values = getattr(self.config, section.name)
            for key in attrs.fields(type(values)):
                value = getattr(values, key.name)
                name = f"{section.name}.{key.name}"
                if isinstance(value, Mapping) and value:
                    yield from ((f"{name}.{entry}", item) for entry, item in value.items())
                else:
                    yield name, value


def read_layers(
    kind: type[Config],
    path: Path | str | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
    unusable: Mapping[str, str] | None = None,
    only: str | None = None,
) -> LoadedConfig:
    """Load the effective configuration into an object of class ``kind``, which has the sections.

    Arguments and errors are those of ``load_config``. ``absent`` are sections that are ignored with a warning,
    ``unusable`` sections that are an error, each with the reason. With ``only``, no other section is read.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    warned: list[str] = []
    merged = _Layers(kind)
    file = find_config_file(path, environ)
    if file is not None:
        _add_file(file, merged, problems, warned, absent or {}, unusable or {}, only)

    if only is not None:
        prefix = variable_name(only, "")
        environ = {n: v for n, v in environ.items() if n.startswith(prefix) or n == DISABLE_VARIABLE}
    given, wrong, warnings = variables_given(environ, kind)
    problems += wrong
    _add(given, merged, problems, lambda path: f"environment {variable_name(*_section_and_key(path))}")

    names = flag_names or {}
    given = _nested(flags or {})
    _add(given, merged, problems, lambda path: f"flag {_flag(path, names)}")
    if problems:
        raise InvalidConfig(problems)

    merged.disable(split_names(environ.get(DISABLE_VARIABLE, "")))
    return LoadedConfig(from_dict(merged.data, kind), file, (*warned, *warnings), origins=merged.origins)


class _Layers:
    """Merge layers, with the origin of every effective value."""

    def __init__(self, kind: type[Config]) -> None:
        self.kind = kind
        self.data: Data = {}
        self.origins: dict[str, str] = {}

    def add(self, layer: Data, origin: Callable[[str], str]) -> None:
        for section, values in layer.items():
            below = self.data.setdefault(section, {})
            for backend, options in _OPTIONS_OF:
                if section == "inference" and backend in values:
                    before = below.get(backend, keys()[section][backend].default)
                    if values[backend] != before:
                        self._forget(section, options)
            for key, value in values.items():
                name = f"{section}.{key}"
                if isinstance(value, Mapping):
                    below[key] = {**below.get(key, {}), **value}
                    self.origins |= {f"{name}.{entry}": origin(f"$.{name}.{entry}") for entry in value}
                else:
                    below[key] = value
                self.origins[name] = origin(f"$.{name}")

    def disable(self, names: tuple[str, ...]) -> None:
        if names:
            below = self.data.setdefault("plugins", {})
            below["disabled"] = list(dict.fromkeys((*below.get("disabled", ()), *names)))
            here = f"environment {DISABLE_VARIABLE}"
            earlier = self.origins.get("plugins.disabled")
            self.origins["plugins.disabled"] = f"{earlier} + {here}" if earlier else here

    def _forget(self, section: str, key: str) -> None:
        self.data[section].pop(key, None)
        name = f"{section}.{key}"
        self.origins = {k: o for k, o in self.origins.items() if k != name and not k.startswith(name + ".")}


def _add_file(
    file: Path,
    merged: _Layers,
    problems: list[str],
    warned: list[str],
    absent: Mapping[str, str],
    unusable: Mapping[str, str],
    only: str | None,
) -> None:
    try:
        document = parse(read_text(file))
    except InvalidConfig as error:
        problems += [f"{file}:{problem}" for problem in error.problems]
        return
    if document.problems:
        problems += [f"{file}:{line}: {message}" for line, message in document.problems]
        return
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        sections = ", ".join(section.name for section in attrs.fields(merged.kind))
        problems.append(f"{file}:1: the top level must be a mapping of sections ({sections})")
        return
    if only is not None:
        data = {only: data[only]} if only in data else {}
    for section in [name for name in data if name not in keys(merged.kind)]:
        place = f"{file}:{document.line(f'$.{section}')}"
        if section in absent:
            warned.append(f"{place}: section {section} is ignored: {absent[section]}")
            del data[section]
        elif section in unusable:
            problems.append(f"{place}: section {section} cannot be read: {unusable[section]}")
            del data[section]
    _add(
        data, merged, problems,
        origin=lambda path: f"file {file}:{document.line(path)}",
        place=lambda path: f"{file}:{document.line(path)}",
        order=document.line,
    )  # fmt: skip


def _add(
    layer: dict[Any, Any],
    merged: _Layers,
    problems: list[str],
    origin: Callable[[str], str],
    place: Callable[[str], str] | None = None,
    order: Callable[[str], int] = lambda _: 0,
) -> None:
    """Check a layer alone (every key has a default, so a partial one is complete) and merge it."""
    layer = _without_empty(layer, keys(merged.kind))
    try:
        from_dict(layer, merged.kind)
    except SchemaError as error:
        where = place or origin
        found = sorted(error.problems, key=lambda problem: order(problem.path))
        problems += [f"{where(p.path)}: {p.path.removeprefix('$.')} {p.message}" for p in found]
    else:
        merged.add(layer, origin)


def _without_empty(layer: dict[Any, Any], known_keys: Mapping[str, Mapping[str, Any]]) -> dict[Any, Any]:
    """Drop empty sections, lists and mappings (``aliases:`` with all its entries commented out)."""
    kept = {}
    for name, values in layer.items():
        if name in known_keys and values is None:
            continue
        if name in known_keys and isinstance(values, dict):
            collections = {
                k for k, known in known_keys[name].items() if get_origin(known.type) in (Mapping, tuple)
            }
            values = {k: v for k, v in values.items() if v is not None or k not in collections}
        kept[name] = values
    return kept


def _nested(flags: Mapping[str, object]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition(".")
            data.setdefault(section, {})[key] = value
    return data


def _section_and_key(path: str) -> tuple[str, str]:
    section, _, rest = path.removeprefix("$.").partition(".")
    key, _, _ = rest.replace("[", ".").partition(".")
    return section, key


def _flag(path: str, names: Mapping[str, str]) -> str:
    section, key = _section_and_key(path)
    return names.get(f"{section}.{key}", "--" + key.replace("_", "-"))
