"""Renders a model's chat template: an untrusted Jinja program from the model's files.

The environment matches that of transformers (https://huggingface.co/docs/transformers/chat_templating): lines of blocks
are trimmed, loops support ``break`` and ``continue``, ``{% generation %}`` is accepted, and ``raise_exception``,
``strftime_now`` and ``tojson`` are defined.
"""

from __future__ import annotations

import datetime
import json
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from sage_infer.errors import InvalidRequest, ModelFileError
from sage_infer.sdk.chat_templates.budget import Budget, TemplateLimitError
from sage_infer.sdk.chat_templates.limits import LimitedEnvironment

__all__ = ["RESERVED_VARIABLES", "ChatTemplate", "TemplateTooCostly"]

_LONGEST_SOURCE = 2**20  # characters; published templates have up to 30,000
_LONGEST_TIME_FORMAT = 200
_LONGEST_MESSAGE = 1000  # of an error that quotes a template

RESERVED_VARIABLES = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now")
"""Reserved variable names, set by the renderer."""


class TemplateTooCostly(InvalidRequest):
    """A template computes more than any prompt needs."""


class ChatTemplate:
    """One compiled template. Raises :class:`ModelFileError` if ``source`` is not valid Jinja.

    ``name`` is the template's, for errors.

    Attributes:
        reads_tools: whether the template renders tools.
        reads_calls: whether it renders calls of earlier messages.
    """

    def __init__(self, source: str, name: str = "chat template") -> None:
        self.source, self.name = source, name
        if len(source) > _LONGEST_SOURCE:
            raise ModelFileError(
                f"the model's {name} has {len(source)} characters, expected at most {_LONGEST_SOURCE}"
            )
        if not source.isascii() and any("\ud800" <= letter <= "\udfff" for letter in source):
            raise ModelFileError(f"the model's {name} is not valid Unicode; the file is damaged")
        environment = LimitedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.add_filter("tojson", _to_json)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._environment = environment
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        # Deeply nested templates overflow the stack, or become Python code that is nested too deeply.
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise ModelFileError(f"the model's {name} is not valid Jinja: {error}") from error
        names = tree.find_all(jinja2.nodes.Name)
        read = {node.name for node in names if node.ctx == "load"}
        self.reads_tools = "tools" in read
        self._thinking = "thinking" if "thinking" in read and "enable_thinking" not in read else None
        self.reads_calls = "tool_calls" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the prompt; ``variables`` are additional template variables. A template that knows ``enable_thinking``
        as ``thinking`` gets it under that name.

        Raises :class:`InvalidRequest` if the template rejects the messages, or fails on them, and
        :class:`TemplateTooCostly` if it computes too much.
        """
        given = dict(variables or {})
        if self._thinking is not None and "enable_thinking" in given:
            given.setdefault(self._thinking, given["enable_thinking"])
        try:
            return self._environment.render_within(
                Budget((messages, tools, given)),
                self._template,
                {
                    "documents": None,
                    **given,
                    "messages": [dict(message) for message in messages],
                    "tools": list(tools) if tools else None,
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except _Refused as error:
            raise InvalidRequest(f"the model's {self.name} rejects these messages: {error}") from error
        except (TemplateLimitError, MemoryError) as error:
            raise TemplateTooCostly(
                f"the model's {self.name} exceeds what a template may compute ({_line(error)}"
                f"{str(error) or 'out of memory'}); send fewer or shorter messages, or use another model"
            ) from error
        # A template is a program over the caller's data: a missing key or a wrong type raises an arbitrary error.
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise InvalidRequest(
                f"the model's {self.name} fails on these messages ({type(error).__name__}: "
                f"{str(error)[:_LONGEST_MESSAGE]}); "
                "check each message's role and content"
            ) from error


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; in a prompt, its content is unchanged."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(Exception):
    """The template called ``raise_exception``."""


def _raise(message: Any) -> None:
    raise _Refused(str(message)[:_LONGEST_MESSAGE])


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form[:_LONGEST_TIME_FORMAT])


def _line(error: BaseException) -> str:
    """The line of the template that failed, as ``line 3: ``; empty if unknown."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if _is_template(frame)]
    return f"line {lines[-1]}: " if lines else ""


def _is_template(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename == "<template>"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
