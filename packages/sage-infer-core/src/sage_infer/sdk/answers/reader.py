"""Incremental parser of answers: reasoning first, then text and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sage_infer.contracts import AnswerDelta, AnswerReader, ChatAnswer, ToolCall
from sage_infer.schemas import ToolCallDelta
from sage_infer.sdk.answers.sink import CallSink
from sage_infer.sdk.answers.source import SPACE, Scan, Source, skip_space
from sage_infer.sdk.answers.thoughts import ThoughtForm, ThoughtSplitter, beginning_of

__all__ = ["TextAnswerReader", "read_whole"]


class CallMarks(Protocol):
    """The parts of ``families.CallForm`` that a reader uses."""

    @property
    def opens(self) -> str: ...
    @property
    def closes(self) -> str: ...
    @property
    def scan(self) -> Callable[[Source, CallSink], Scan[bool]]: ...


class TextAnswerReader:
    """An ``AnswerReader``. Text that only looks like a call is content: no character is lost.

    White space before a call and after the last one is dropped. Text after a mark is held back until the function's
    name and the start of its arguments have arrived; then the arguments are delivered as they arrive. Incomplete text
    after the last call of a truncated answer may be the start of another call, and is dropped.

    Args:
        forms: formats of calls to parse; empty for an answer without tools.
        thoughts: format of the reasoning; None if it is not parsed.
        parameters: parameters of each known function: name to schema.
        prompt: text of the prompt, which may end with the mark that starts the reasoning.
    """

    def __init__(
        self,
        forms: tuple[CallMarks, ...],
        thoughts: ThoughtForm | None,
        *,
        parameters: Mapping[str, Mapping[str, Any]],
        prompt: str = "",
    ) -> None:
        self._splitter = None if thoughts is None else ThoughtSplitter(thoughts, prompt)
        self._marked = {form.opens: form for form in forms if form.opens}
        self._bare = [form for form in forms if not form.opens]
        self._source = Source()
        self._sink = CallSink(self._source, parameters)
        self._content: list[str] = []
        self._space = ""
        self._said = False
        self._scan = self._read() if forms else None

    @property
    def is_reasoning(self) -> bool:
        return self._splitter is not None and self._splitter.is_reasoning

    def feed(self, text: str) -> AnswerDelta:
        return self._take(text, at_end=False)

    def end(self) -> AnswerDelta:
        return self._take("", at_end=True)

    def _take(self, text: str, *, at_end: bool) -> AnswerDelta:
        thoughts = ""
        if self._splitter is not None:
            thoughts, text = self._splitter.feed(text, at_end=at_end)
        if self._scan is None:
            return AnswerDelta(content=text, reasoning=thoughts)
        self._source.feed(text)
        self._source.closed = at_end
        next(self._scan, None)
        content, self._content = "".join(self._content), []
        if at_end and not self._sink.count:
            content += self._space
        return AnswerDelta(content=content, reasoning=thoughts, tool_calls=self._sink.take())

    def _read(self) -> Scan[None]:
        source = self._source
        while True:
            form = self._next_form()
            if form is not None:
                source.mark = source.at
                if (yield from form.scan(source, self._sink)):
                    yield from self._close(form.closes)
                    self._said, self._space = True, ""
                elif source.at_end:  # it was never completed
                    source.back()
                    self._say(form.opens + source.text[source.at :])
                    source.at = len(source.text)
                else:
                    source.back()
                    if not form.opens:
                        source.at += 1
                    self._say(form.opens or source.text[source.at - 1])
            elif source.at_end:
                return
            elif not source.closed:
                yield

    def _next_form(self) -> CallMarks | None:
        """Say the text up to the next mark, and skip that; None where more text must show it."""
        source = self._source
        text = source.text
        if not self._said and self._bare:
            content = text[source.at :].lstrip(SPACE)
            if content and content[0] in "[{" and not content.startswith(tuple(self._marked)):
                if not source.closed and any(mark.startswith(content) for mark in self._marked):
                    return None
                self._say(text[source.at : len(text) - len(content)])
                source.at = len(text) - len(content)
                return self._bare[0]
        places = [(place, mark) for mark in self._marked if (place := text.find(mark, source.at)) >= 0]
        if places:
            place, mark = min(places)
            self._say(text[source.at : place])
            source.at = place + len(mark)
            return self._marked[mark]
        keep = 0 if source.closed else beginning_of(tuple(self._marked), text[source.at :])
        self._say(text[source.at : len(text) - keep])
        source.at = len(text) - keep
        return None

    def _say(self, text: str) -> None:
        """Say text, but hold back white space at its end."""
        text = self._space + text
        said = text.rstrip(SPACE)
        self._space = text[len(said) :]
        if said:
            self._said = True
            self._content.append(said)

    def _close(self, mark: str) -> Scan[None]:
        """Skip the closing mark, or what there is of it at the end of the answer."""
        source = self._source
        if not mark:
            return
        source.mark = source.at
        yield from skip_space(source)
        while True:
            rest = source.text[source.at : source.at + len(mark)]
            if rest == mark or (source.closed and mark.startswith(rest)):
                source.at += len(rest)
                source.mark = None
                return
            if source.closed or not mark.startswith(rest):
                source.back()
                return
            yield


def read_whole(reader: AnswerReader, text: str) -> ChatAnswer:
    """Parse a complete answer, without its reasoning."""
    content: list[str] = []
    calls: list[ToolCallDelta] = []
    for delta in (reader.feed(text), reader.end()):
        content.append(delta.content)
        for call in delta.tool_calls:
            if call.index == len(calls):
                calls.append(ToolCallDelta(index=call.index, name=call.name))
            calls[call.index].arguments += call.arguments
    return ChatAnswer(
        content="".join(content),
        tool_calls=tuple(ToolCall(name=call.name, arguments=call.arguments) for call in calls),
    )
