"""Defaults < file < environment < flags, checked layer by layer so that every problem names its own place."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import attrs
from attrs import field, frozen

from sage_infer.config.document import InvalidConfig, parse
from sage_infer.config.environment import variable_name, variables_given
from sage_infer.config.search import DISABLE_VARIABLE, find_config_file, read_text, split_names
from sage_infer.config.settings import Config, keys
from sage_infer.errors import ConfigError, SchemaError
from sage_infer.schemas.codec import from_dict

__all__ = ["LoadedConfig", "load_config"]

Data = dict[str, dict[str, Any]]
DEFAULT = "default"

# Options mean something to one backend only; they go when a higher layer names another one.
_OPTIONS_OF = {"backend": "options", "embedding_backend": "embedding_options"}


@frozen
class LoadedConfig:
    """The configuration, where each value came from, and what looked like a mistake but is none for sure.

    Attributes:
        config: the values.
        path: the file that was read; None where there is none.
        warnings: one line each, such as an unknown SAGE_INFER_ variable.
    """

    config: Config
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    _origins: Mapping[str, str] = field(factory=dict, alias="origins")

    def origin(self, key: str) -> str:
        """Where ``key`` (``inference.backend``) came from: default, ``file PATH:LINE``, environment or flag.

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
        """Every key with its value and origin, mappings entry by entry: for ``sage infer config show``."""
        return [(key, value, self._origins.get(key, DEFAULT)) for key, value in self._values()]

    def path_value(self, key: str, value: str) -> Path:
        """A path that the configuration holds: one from the file is relative to the file's folder."""
        path = Path(value).expanduser()
        if self.path is not None and self._origins.get(key, "").startswith("file "):
            path = self.path.parent / path
        return path.absolute()

    def _values(self) -> Iterator[tuple[str, Any]]:
        for section in attrs.fields(Config):
            values = getattr(self.config, section.name)
            for key in attrs.fields(type(values)):
                value = getattr(values, key.name)
                name = f"{section.name}.{key.name}"
                if isinstance(value, Mapping) and value:
                    yield from ((f"{name}.{entry}", item) for entry, item in value.items())
                else:
                    yield name, value


def load_config(
    path: Path | str | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Read the configuration that applies here.

    ``path`` is the file to read; without it the usual places are searched; finding none is fine. ``flags``
    are values from the command line by key (``{"inference.backend": "vllm"}``), None meaning not given;
    ``flag_names`` says what the user typed for a key (``{"inference.embedding_backend": "--backend"}``)
    where that is not the key's last word.

    A mapping (options, aliases) is merged entry by entry, everything else is replaced by the higher layer;
    SAGE_INFER_DISABLE adds to ``plugins.disabled``.

    Raises:
        ConfigError: the file cannot be found or read.
        InvalidConfig: something is wrong; it holds every problem of every layer with its file and line,
            variable or flag.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    merged = _Layers()
    file = find_config_file(path, environ)
    if file is not None:
        _add_file(file, merged, problems)

    given, wrong, warnings = variables_given(environ)
    problems += wrong
    _add(given, merged, problems, lambda path: f"environment {variable_name(*_section_and_key(path))}")

    names = flag_names or {}
    given = _nested(flags or {})
    _add(given, merged, problems, lambda path: f"flag {_flag(path, names)}")
    if problems:
        raise InvalidConfig(problems)

    merged.disable(split_names(environ.get(DISABLE_VARIABLE, "")))
    return LoadedConfig(from_dict(merged.data, Config), file, tuple(warnings), origins=merged.origins)


class _Layers:
    """Layers laid over each other, with the origin of every value that is on top."""

    def __init__(self) -> None:
        self.data: Data = {}
        self.origins: dict[str, str] = {}

    def add(self, layer: Data, origin: Callable[[str], str]) -> None:
        for section, values in layer.items():
            below = self.data.setdefault(section, {})
            for backend, options in _OPTIONS_OF.items():
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


def _add_file(file: Path, merged: _Layers, problems: list[str]) -> None:
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
        sections = ", ".join(section.name for section in attrs.fields(Config))
        problems.append(f"{file}:1: the top level must be a mapping of sections ({sections})")
        return
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
    """Check a layer by itself (every key has a default, so a part is a whole) and lay it on top."""
    layer = _without_empty(layer)
    try:
        from_dict(layer, Config)
    except SchemaError as error:
        where = place or origin
        found = sorted(error.problems, key=lambda problem: order(problem.path))
        problems += [f"{where(p.path)}: {p.path.removeprefix('$.')} {p.message}" for p in found]
    else:
        merged.add(layer, origin)


def _without_empty(layer: dict[Any, Any]) -> dict[Any, Any]:
    """Drop sections, lists and mappings left empty (``aliases:`` with all its entries commented out)."""
    kept = {}
    for name, values in layer.items():
        if name in keys() and values is None:
            continue
        if name in keys() and isinstance(values, dict):
            collections = {
                k for k, known in keys()[name].items() if get_origin(known.type) in (Mapping, tuple)
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
