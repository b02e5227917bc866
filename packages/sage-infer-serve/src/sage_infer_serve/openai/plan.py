"""Generation settings and answer reader of a chat, from its tools, constraint and template."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sage_infer.contracts import AnswerFormat, AnswerReader, ChatAnswer
from sage_infer.schemas import GuidedDecoding
from sage_infer.sdk.answers import answer_format

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.forced_calls import (
    NO_PARAMETERS,
    NamedCallReader,
    RequiredCallReader,
    schema_of_any,
)
from sage_infer_serve.openai.messages import function_names, tools_as_dicts
from sage_infer_serve.openai.sampling import guided_by
from sage_infer_serve.openai.schema import ChatRequest, NamedTool

__all__ = ["ChatPlan", "Parse"]

Parse = Callable[[str], Awaitable[ChatAnswer]]
"""Parses a whole answer."""

_ANY_FAMILY = answer_format()


class ChatPlan:
    """Generation settings from tools and response format.

    Attributes:
        tools: tools for the prompt; None without tools.
        guided: the constraint.
        is_single: whether an answer has at most one call.
        reads_calls: whether calls are optional, so that they must be recognized in the text.

    Raises:
        HTTPError: tools, choice and format are inconsistent.
    """

    def __init__(self, request: ChatRequest) -> None:
        tools = request.tools or []
        choice = request.tool_choice
        if choice is not None and choice != "none" and not tools:
            raise wrong_request("tool_choice requires tools", "tool_choice")
        names = function_names(tools)
        self.tools = tools_as_dicts(tools) if tools and choice != "none" else None
        self._names = names if self.tools else []
        self._forced = ""  # the function that the whole output must call
        self._required = choice == "required"
        self.guided = guided_by(request, request.response_format)
        if self.guided is not None and (self._required or isinstance(choice, NamedTool)):
            raise wrong_request(
                "a forced tool call and a response format are mutually exclusive", "tool_choice"
            )
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                known = ", ".join(names)
                raise wrong_request(
                    f"unknown tool {choice.function.name!r}; available: {known}",
                    "tool_choice.function.name",
                )
            self._forced = choice.function.name
            tool = tools[names.index(self._forced)]
            self.guided = GuidedDecoding(json_schema=tool.function.parameters or NO_PARAMETERS)
        elif self._required:
            self.guided = GuidedDecoding(json_schema=schema_of_any(tools))
        self.is_single = request.parallel_tool_calls is False
        self.reads_calls = bool(self.tools) and not self._forced and not self._required

    def reads_thoughts(self, form: AnswerFormat) -> bool:
        """Whether answers may contain thoughts: the model produces them, and the constraint, if any, allows them."""
        if self.guided is None or not form.thought_ends:
            return bool(form.thought_ends)
        constraint = " ".join(
            (self.guided.regex or "", self.guided.grammar or "", *(self.guided.choice or ()))
        )
        return any(mark in constraint.replace("\\", "") for mark in form.thought_ends)

    def reader(self, form: AnswerFormat | None, prompt: str, *, has_parser: bool) -> AnswerReader | None:
        """A reader for one answer; None if all of it is content, or a backend's own parser is used."""
        if self._forced:
            return NamedCallReader(self._forced)
        if self._required:
            return RequiredCallReader(self._names)
        if form is None:
            return None if has_parser or not self.tools else _ANY_FAMILY.reader(tools=self.tools)
        reads_thoughts = self.reads_thoughts(form)
        if not (self.tools or reads_thoughts):
            return None
        return form.reader(tools=self.tools, prompt=prompt, reads_thoughts=reads_thoughts)
