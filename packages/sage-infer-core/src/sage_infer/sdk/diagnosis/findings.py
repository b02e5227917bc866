"""Checks of a vendor's stack, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

from attrs import field, frozen
from attrs.validators import is_callable

from sage_infer.checks import Choice, Each, Instance, Text, as_tuple
from sage_infer.sdk.diagnosis.machine import Machine

__all__ = ["Check", "Finding", "Part", "Severity", "VendorChecks"]

Severity = Literal["error", "warning", "note"]

_LINE = Text(pattern=r"[^\n]+", hint="one line of text")


def _printable(text: str) -> str:
    """Converter: values of variables and files may hold line breaks and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@frozen(kw_only=True)
class Finding:
    """One problem of a machine.

    Attributes:
        what: one line: what was found, and what it causes.
        fix: one line: the command that fixes it, or what to do.
        severity: error if the engine cannot work, warning if it fails or is slow in some uses, else note.
    """

    what: str = field(converter=_printable, validator=_LINE)
    fix: str = field(converter=_printable, validator=_LINE)
    severity: Severity = field(default="error", validator=Choice(get_args(Severity)))


@frozen(kw_only=True)
class Check:
    """One thing that users of a stack get wrong.

    Attributes:
        name: short name in front of its findings.
        sources: addresses of the public reports or pages that it is made from.
        find: returns the findings; called with the machine, in a thread of its own and with a time limit.
    """

    name: str = field(validator=_LINE)
    sources: tuple[str, ...] = field(
        converter=as_tuple, validator=Each(Text(pattern="https://.*", hint="an https address"), min_items=1)
    )
    find: Callable[[Machine], Iterable[Finding]] = field(validator=is_callable())


@frozen(kw_only=True)
class Part:
    """A part of the stack with a version of its own: a driver, a toolkit, a distribution.

    Attributes:
        name: name in tables, and in the rows of ``releases``.
        distribution: the Python distribution; empty if it is not one.
        files: glob patterns of the files that state its version, preferred first, as for ``Machine.paths``.
        expression: regular expression of the version in these files; its first group if it has one.
    """

    name: str = field(validator=_LINE)
    distribution: str = field(default="", validator=Text())
    files: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    expression: str = field(default=r"\d+(?:\.\w+)+", validator=Text(min_length=1))

    def version(self, machine: Machine) -> str:
        """The version on a machine; empty if the part is missing or does not state one."""
        if self.distribution:
            return machine.version(self.distribution)
        return machine.found_in(self.files, self.expression)


@frozen(kw_only=True)
class VendorChecks:
    """What ``sage infer doctor --vendor NAME`` shows and checks; ``DetectorSpec.checks`` names it.

    Attributes:
        parts: parts of the stack, shown with their versions.
        checks: the checks, in the order of their findings.
        nodes: glob patterns of device files, listed in a report.
        variables: patterns (``fnmatch``) of environment variables that a report may contain.
    """

    parts: tuple[Part, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(Part)))
    checks: tuple[Check, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(Check)))
    nodes: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    variables: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
