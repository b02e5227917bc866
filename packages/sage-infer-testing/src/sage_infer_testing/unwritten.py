"""Methods that are not written yet: each fails one test, which names it, and the tests that wait for it are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NoReturn

import pytest
from attrs import field, frozen

from sage_infer_testing.advice import MARK

__all__ = ["WRITE_IT", "Unwritten", "find_unwritten", "report_unwritten"]

WRITE_IT = "write it; other tests wait for it, and are skipped until then."

_REPORTED = pytest.StashKey[dict["Unwritten", str]]()  # of a class: the test that failed for each method


@frozen
class Unwritten:
    """A function that raised ``NotImplementedError``; ``others`` are methods beside it that do nothing else."""

    name: str
    file: str
    line: int
    message: str
    others: tuple[str, ...] = field(default=(), eq=False)

    def __str__(self) -> str:
        file = os.path.relpath(self.file) if Path(self.file).is_relative_to(Path.cwd()) else self.file
        said = f": {self.message}" if self.message else ""
        others = f"; nor is {', nor is '.join(f'{name}()' for name in self.others)}" if self.others else ""
        return f"{self.name}() is not written yet ({file}:{self.line}){said}{others}"


def find_unwritten(error: BaseException) -> Unwritten | None:
    """Return the function whose ``NotImplementedError`` caused an error; None if it has another cause."""
    for cause in _causes(error):
        frame = cause.__traceback__
        if isinstance(cause, NotImplementedError) and frame is not None:
            while frame.tb_next is not None:
                frame = frame.tb_next
            code = frame.tb_frame.f_code
            name = getattr(code, "co_qualname", code.co_name)  # since Python 3.11
            message = " ".join(str(cause).split())
            return Unwritten(name, code.co_filename, frame.tb_lineno, message, _others(frame.tb_frame))
    return None


def _others(frame: FrameType) -> tuple[str, ...]:
    """Methods of the class whose method a frame runs that only raise ``NotImplementedError``, too."""
    if frame.f_code.co_varnames[:1] != ("self",):
        return ()
    methods = vars(type(frame.f_locals["self"])).items()
    return tuple(
        name
        for name, method in methods
        if isinstance(method, FunctionType)
        and method.__code__ is not frame.f_code
        and method.__code__.co_names == ("NotImplementedError",)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, those in its group, and those that it was raised from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, None if cause.__suppress_context__ else cause.__context__]
        waiting += getattr(cause, "exceptions", ())


def report_unwritten(node: Any, missing: Unwritten) -> NoReturn:
    """Fail the first test of a class that needs a function; skip the later ones, which name that test.

    A test that is marked ``xfail`` does not count as the first: its failure would not be seen.
    """
    __tracebackhide__ = True
    owner = node.getparent(pytest.Class) or node
    reported = owner.stash.setdefault(_REPORTED, {})
    first = reported.get(missing)
    if first is not None and first != node.name:
        pytest.skip(f"waits for {missing.name}(), see {first}")
    if node.get_closest_marker("xfail") is None:
        reported[missing] = node.name
    failed = pytest.fail.Exception(str(missing), pytrace=False)
    vars(failed).setdefault("__notes__", []).append(f"{MARK} {WRITE_IT}")  # ``add_note`` of Python 3.10, too
    raise failed
