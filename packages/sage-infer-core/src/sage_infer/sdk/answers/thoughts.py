"""Reasoning before an answer, between marks."""

from __future__ import annotations

from attrs import frozen

from sage_infer.sdk.answers.source import SPACE

__all__ = ["ThoughtForm", "ThoughtSplitter", "beginning_of"]


@frozen(kw_only=True)
class ThoughtForm:
    """Marks of reasoning.

    Attributes:
        opens: opening marks, at the start of an answer or at the end of its prompt.
        closes: closing marks.
        around: marks that may enclose the answer after the reasoning, and do not belong to it.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    around: tuple[str, ...] = ()


class ThoughtSplitter:
    """Splits an answer into reasoning and the rest. White space next to the marks is dropped."""

    def __init__(self, form: ThoughtForm, prompt: str) -> None:
        self._form = form
        self._held = ""
        self.is_reasoning = prompt.rstrip(SPACE).endswith(form.opens)
        self._before = not self.is_reasoning  # thoughts may still begin
        self._at_start = True  # of the thoughts, or of the rest after them
        self._around = form.around

    def feed(self, text: str, *, at_end: bool = False) -> tuple[str, str]:
        """Return reasoning and other text that are certain."""
        self._held += text
        if self._before and not self._begin(at_end):
            return "", ""
        thoughts = self._think(at_end) if self.is_reasoning else ""
        return thoughts, "" if self.is_reasoning else self._rest(at_end)

    def _begin(self, at_end: bool) -> bool:
        """Whether it is known if the answer begins with thoughts."""
        text = self._held.lstrip(SPACE)
        mark = next((mark for mark in self._form.opens if text.startswith(mark)), None)
        if mark is None and not at_end and any(mark.startswith(text) for mark in self._form.opens):
            return False
        self._before = False
        if mark is None:
            self._at_start, self._around = False, ()
        else:
            self.is_reasoning, self._held = True, text[len(mark) :]
        return True

    def _think(self, at_end: bool) -> str:
        if self._at_start:
            self._held = self._held.lstrip(SPACE)
        found = [(place, mark) for mark in self._form.closes if (place := self._held.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            thoughts, self._held = self._held[:place].rstrip(SPACE), self._held[place + len(mark) :]
            self.is_reasoning, self._at_start = False, True
            return thoughts
        keep = 0 if at_end else beginning_of(self._form.closes, self._held)
        thoughts = self._held[: len(self._held) - keep].rstrip(SPACE)
        self._held = self._held[len(thoughts) :]
        self._at_start = self._at_start and not thoughts
        return thoughts

    def _rest(self, at_end: bool) -> str:
        if self._at_start:
            self._held = self._held.lstrip(SPACE)
            self._at_start = not self._held
        for mark in self._around:
            if mark in self._held:
                self._held = self._held.replace(mark, "")
        keep = 0 if at_end else beginning_of(self._around, self._held)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text


def beginning_of(marks: tuple[str, ...], text: str) -> int:
    """Return the number of characters at the end of ``text`` that may start one of ``marks``."""
    longest = max(map(len, marks), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
