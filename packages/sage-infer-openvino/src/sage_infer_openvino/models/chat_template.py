"""Renders a model's chat template: an untrusted Jinja program from the model's files.

The environment matches that of transformers (https://huggingface.co/docs/transformers/chat_templating): lines of blocks
are trimmed, loops support ``break`` and ``continue``, ``{% generation %}`` is accepted, and ``raise_exception``,
``strftime_now`` and ``tojson`` are defined.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
from sage_infer.errors import InvalidRequest, ModelFileError

__all__ = ["RESERVED_VARIABLES", "ChatTemplate"]

_MOST_ITERATIONS = 100_000  # of all loops over numbers, as of one in Jinja's sandbox
_LONGEST_REPEATED = 1_000_000  # characters or items of a repetition
_LARGEST_FACTOR, _LARGEST_EXPONENT = 2**64, 64

RESERVED_VARIABLES = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now")
"""Reserved variable names, set by the renderer."""


class ChatTemplate:
    """One compiled template. Raises :class:`ModelFileError` if ``source`` is not valid Jinja.

    Attributes:
        reads_tools: whether the template renders tools.
        reads_calls: whether it renders calls of earlier messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        # Deeply nested templates overflow the stack, or become Python code that is nested too deeply.
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise ModelFileError(f"the model's chat template is not valid Jinja: {error}") from error
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

        Raises :class:`InvalidRequest` if the template rejects the messages, or fails on them.
        """
        given = dict(variables or {})
        if self._thinking is not None and "enable_thinking" in given:
            given.setdefault(self._thinking, given["enable_thinking"])
        try:
            return self._template.render(
                {
                    "range": _Range(),
                    "documents": None,
                    **given,
                    "messages": [dict(message) for message in messages],
                    "tools": list(tools) if tools else None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template rejects these messages: {error}") from error
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
                f"the model's chat template fails on these messages ({type(error).__name__}: {error}); "
                "check each message's role and content"
            ) from error


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Limits what the operators of a template compute; loops are limited by ``_Range``."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if not (abs(left) <= _LARGEST_FACTOR and abs(right) <= _LARGEST_EXPONENT):
                raise jinja2.TemplateRuntimeError(f"{left} ** {right} is too large")
        elif any(isinstance(side, Sequence) for side in (left, right)):
            length, times = (len(left), right) if isinstance(left, Sequence) else (len(right), left)
            if isinstance(times, int) and length * times > _LONGEST_REPEATED:
                raise jinja2.TemplateRuntimeError(f"a text repeated {times} times is too long")
        return super().call_binop(context, operator, left, right)


class _Range:
    """``range`` of one rendering, limited over all of its loops."""

    def __init__(self) -> None:
        self._left = _MOST_ITERATIONS

    def __call__(self, *bounds: int) -> range:
        found = range(*bounds)
        self._left -= len(found)
        if self._left < 0:
            raise jinja2.TemplateRuntimeError(f"its loops have more than {_MOST_ITERATIONS} iterations")
        return found


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; in a prompt, its content is unchanged."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(Exception):
    """The template called ``raise_exception``."""


def _raise(message: str) -> None:
    raise _Refused(message)


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
