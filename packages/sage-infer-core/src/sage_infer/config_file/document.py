"""A YAML text as plain data with the line of every key."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import yaml
from attrs import frozen

from sage_infer.errors import ConfigError

__all__ = ["Document", "InvalidConfig", "parse", "parse_scalar"]


class InvalidConfig(ConfigError):
    """The configuration is invalid. ``problems`` holds one line per problem, each with its location."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class _Loader(yaml.SafeLoader):
    """Safe YAML without dates: a name such as ``2025-01-01`` stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@frozen
class Document:
    """Parsed YAML. ``problems`` (``(line, message)``) are mistakes that YAML itself accepts."""

    data: Any
    root: yaml.Node | None
    keys: dict[int, Hashable]  # by id of a key's node: the parsed key
    problems: list[tuple[int, str]]

    def line(self, path: str) -> int:
        """Line of the deepest existing part of ``path`` (``$.a.b[0]``), counted from 1."""
        node, rest, line = self.root, path.removeprefix("$"), 1
        while rest:
            for step, place, child in self._children(node):
                if rest.startswith(step) and rest[len(step) : len(step) + 1] in ("", ".", "["):
                    node, rest, line = child, rest[len(step) :], place.start_mark.line + 1
                    break
            else:
                break
        return line

    def _children(self, node: yaml.Node | None) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Path step, node to report, node to continue with. Longest first: keys contain dots."""
        if isinstance(node, yaml.MappingNode):
            steps = [(f".{self.keys.get(id(key), key.value)}", key, value) for key, value in node.value]
            return sorted(steps, key=lambda step: -len(step[0]))
        if isinstance(node, yaml.SequenceNode):
            return [(f"[{index}]", item, item) for index, item in enumerate(node.value)]
        return []


def parse(text: str) -> Document:
    """Parse one YAML document.

    Raises:
        InvalidConfig: the text is not YAML; each problem starts with ``LINE:COLUMN: ``.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return Document(None, None, {}, [])
            problems: list[tuple[int, str]] = []
            keys: dict[int, Hashable] = {}
            _check(root, loader, problems, keys, ())
            if problems:  # do not construct: a recursive value would never end
                return Document(None, root, keys, problems)
            return Document(loader.construct_document(root), root, keys, [])
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}: " if mark is not None else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidConfig([f"{where}is not YAML: {what}"]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        what = f"unacceptable character {error.character!r}"
        raise InvalidConfig([f"{line}:{column}: is not YAML: {what}"]) from None
    except RecursionError:
        raise InvalidConfig(["1:1: is nested too deeply"]) from None
    except ValueError as error:  # such as `!!int abc`, which PyYAML does not report as a YAML error
        raise InvalidConfig([f"1:1: is not YAML: {error}"]) from None


def parse_scalar(text: str) -> Any:
    """The value of an environment variable: a YAML scalar, or a list or mapping in flow style.

    Raises:
        InvalidConfig: the text is not YAML.
    """
    document = parse(text)
    if document.problems:
        raise InvalidConfig([message for _, message in document.problems])
    return document.data


def _check(
    node: yaml.Node,
    loader: _Loader,
    problems: list[tuple[int, str]],
    keys: dict[int, Hashable],
    above: tuple[yaml.Node, ...],
) -> None:
    """Find repeated keys, which YAML forbids but PyYAML accepts, and values that contain themselves."""
    if any(node is other for other in above):
        problems.append((node.start_mark.line + 1, "contains itself through an alias"))
        return
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, loader, problems, keys, (*above, node))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                name = cast(Hashable, loader.construct_object(key))
                keys[id(key)] = name
                if name in seen:
                    problems.append((line, f"{name} is repeated (first on line {seen[name]})"))
                seen.setdefault(name, line)
            _check(value, loader, problems, keys, (*above, node))
