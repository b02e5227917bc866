"""The kit for readers that detect incomplete recordings, such as those built on ``sage_infer_hal.detection``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sage_infer.schemas import HardwareProfile

from sage_infer_testing.kits.recordings import RecordingContract

__all__ = ["WholeRecordingContract"]

_PREFIXES = (
    "2026-11-29T09:41:36.123456789Z ",  # docker logs -t, GitHub Actions
    "2026-11-29T09:41:36.123456789+00:00 stdout F ",  # containerd
    "Nov 29 09:41:36 node-1 docker[123]: ",  # syslog, journald
    "<134>1 2026-11-29T09:41:36.123Z node-1 smi 99 - - ",  # RFC 5424
    "2026-11-29T09:41:36+0000 node-1 smi[9]: ",  # journalctl -o short-iso
    "1764409296.123456 node-1 smi[1]: ",  # journalctl -o short-unix
    "[  123.456789] ",
    "2026-11-29 09:41:36,123 INFO run: ",
    "web-1  | ",  # docker compose
    "[pod/web-7d/main] 2026-11-29T09:41:36.123456789Z ",  # kubectl logs --prefix --timestamps
    "smi-7d4f-x2x4z main ",  # stern
    "smi-7d4f-x2x4z main 2026-11-29T09:41:36.123456789Z ",  # stern --timestamps
    "> ",
)


class WholeRecordingContract(RecordingContract, kit=True):
    """Additional guarantees: log prefixes and wrapped lines have no effect, and no device is silently lost.

    Attributes:
        incomplete: pattern of notes that devices may be missing.
        examples: number of truncated, repeated and wrapped variants to test per recording.
    """

    incomplete: ClassVar[str] = (
        r"does not count its devices|missing|not shown|may be cut|attached|left out|one GPU only|in no ring"
    )
    examples: ClassVar[int] = 40

    def test_prefixes_of_logs_change_nothing(self, recordings: Any) -> None:
        """Prefixes of log lines, such as a timestamp, a host, a pod or a service, do not change the profile.

        How to fix: remove prefixes in one place, before parsing (``ToolText.of``).
        """
        for name, text, profile in recordings:
            for prefix in _PREFIXES:
                logged = "\n".join(prefix + line for line in text.split("\n"))
                found = self._read(logged, name)
                assert found is not None, f"{name} after {prefix!r} is refused"
                assert found == profile, f"{name} after {prefix!r} reads differently"

    def test_no_device_is_lost_silently(self, recordings: Any) -> None:
        """A truncated text, or one with repeated or missing lines, results in all devices, an error, or a note.

        How to fix: check that every row of a table is present (by a closing rule, a count, the processes below it), and
        raise ``ToolOutputError`` with the row if not. Add a note if the output does not allow such a check.
        """
        for name, text, profile in recordings:
            self._each(name, profile, _shortened(text), allow_note=True)

    def test_wrapped_lines_lose_no_device(self, recordings: Any) -> None:
        """Lines wrapped by a terminal result in the same devices or in an error.

        How to fix: reject a row without the closing frame of its table, and join lines of the terminal's width.
        """
        for name, text, profile in recordings:
            for width in (60, 80, 100, 120):
                for source in (text, text.expandtabs()):
                    self._compare(name, profile, _wrapped(source, width), allow_note=False)

    def _each(
        self, name: str, profile: HardwareProfile, forms: st.SearchStrategy[str], *, allow_note: bool
    ) -> None:
        @settings(
            max_examples=self.examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(forms)
        def check(form: str) -> None:
            self._compare(name, profile, form, allow_note=allow_note)

        check()

    def _compare(self, name: str, profile: HardwareProfile, form: str, *, allow_note: bool) -> None:
        found = self._read(form, name)
        if found is None or (self.no_number and self.no_number in found.notes and not _fewer(found, profile)):
            return
        whole = {(a.hardware_backend, a.index) for a in profile.accelerators}
        shown = {(a.hardware_backend, a.index) for a in found.accelerators}
        assert shown <= whole, f"{name}: {shown - whole} were invented"
        said = allow_note and any(re.search(self.incomplete, note) for note in found.notes)
        assert shown == whole or said, (
            f"{name}: {whole - shown} were lost, and no note says so: {found.notes}"
        )


def _fewer(found: HardwareProfile, whole: HardwareProfile) -> bool:
    return len(found.accelerators) < len(whole.accelerators)


def _shortened(text: str) -> st.SearchStrategy[str]:
    lines = text.split("\n")
    place = st.integers(0, len(lines) - 1)
    return st.one_of(
        st.integers(0, len(text)).map(lambda end: text[:end]),
        place.map(lambda n: "".join(f"{line}\n" for line in lines[:n])),
        place.map(lambda n: "\n".join(lines[:n] + lines[n + 1 :])),
        place.map(lambda n: "\n".join(lines[: n + 1] + lines[n:])),
    )


def _wrapped(text: str, width: int) -> str:
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width))


def _pieces(line: str, width: int) -> Iterator[str]:
    yield line[:width]
    for start in range(width, len(line), width):
        yield line[start : start + width]
