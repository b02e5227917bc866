"""Limits on what a Jinja template computes: a template of a model's files is an untrusted program.

Jinja's sandbox limits what a template can reach, not how much it computes. A loop that doubles a text fills the memory,
and nested lists that share their parts have more text than any memory has room for. So this environment counts steps
and characters, before each operation whose result may be large. Operations without a limit that templates do not need
are rejected by name.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

from sage_infer.sdk.chat_templates.budget import (
    BUDGET,
    CALL,
    PER_STEP,
    SCALARS,
    Budget,
    TemplateLimitError,
    as_text,
    iterated,
)
from sage_infer.sdk.chat_templates.filters import (
    REJECTED_FILTERS,
    check_percent,
    check_text_method,
    formatter_of,
    limited_filter,
    limited_test,
    rejected,
)

__all__ = ["LimitedEnvironment"]

_LARGEST_BITS = 4096  # of an integer
_LARGEST_EXPONENT = 64
_REJECTED_METHODS = frozenset(("encode", "to_bytes", "translate"))
_HOLDERS = (Mapping, Sequence, jinja2.runtime.LoopContext)


def _visited(value: Any) -> Any:
    BUDGET.get().visit(value)
    return value


def _searched(value: Any) -> Any:
    """The right operand of ``in``: looking up keys is quick."""
    return value if isinstance(value, Mapping) else _visited(value)


def _copied(value: Any) -> Any:
    if isinstance(value, Sized):
        BUDGET.get().spend(1 + len(value) // (PER_STEP if isinstance(value, str) else 1))
    return value


@jinja2.pass_eval_context
def _concatenated(eval_ctx: jinja2.nodes.EvalContext, *values: Any) -> str:
    budget = BUDGET.get()
    texts = [value if isinstance(value, str) else as_text(value) for value in values]
    budget.create(sum(map(len, texts)))
    return jinja2.runtime.markup_join(texts) if eval_ctx.autoescape else "".join(map(str, texts))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "(iterated)": iterated,
    "(visited)": _visited,
    "(searched)": _searched,
    "(copied)": _copied,
    "(concatenated)": _concatenated,
}


class _Rewrite(jinja2.visitor.NodeTransformer):
    """Puts the operations above into a template's syntax tree."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _call("(iterated)", node.iter)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _call("(concatenated)", *node.nodes)

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.expr = _checked(node.expr)
        for operand in node.ops:
            name = "(searched)" if operand.op in ("in", "notin") else "(visited)"
            operand.expr = _checked(operand.expr, name)
        return node

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, jinja2.nodes.Slice):
            node.node = _call("(copied)", node.node)
        else:
            node.arg = _checked(node.arg)
        return node

    def visit_Pair(self, node: jinja2.nodes.Pair) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.key = _checked(node.key)
        return node


def _checked(node: Any, name: str = "(visited)") -> Any:
    return node if isinstance(node, jinja2.nodes.Const) else _call(name, node)


def _call(name: str, node: Any, *more: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, list(more), [], None, None, lineno=node.lineno)


class LimitedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox whose templates are rendered within a ``Budget``, by ``render_within``."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        # Constant expressions would be evaluated without a budget.
        super().__init__(optimized=False, finalize=_finalized, **options)
        self.filters = {name: limited_filter(name, f) for name, f in self.filters.items()}
        self.filters.update({name: rejected("filter", name) for name in REJECTED_FILTERS})
        self.filters.update(_OPERATIONS)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: limited_test(name, f) for name, f in tests.items()}
        self.globals["lipsum"] = rejected("function", "lipsum")

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = limited_filter(name, function)

    def render_within(self, budget: Budget, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Render a template. Raises :class:`TemplateLimitError` if it computes too much."""
        token = BUDGET.set(budget)
        try:
            return template.render(variables)
        finally:
            BUDGET.reset(token)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = _Rewrite().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        kept = list(pieces)
        BUDGET.get().create(sum(map(len, kept)))
        return "".join(kept)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        if isinstance(left, str) and operator == "%":
            check_percent(budget, left, right)
        elif isinstance(left, bytes) or isinstance(right, bytes):
            raise TemplateLimitError("bytes are not supported")
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.create(len(left) + len(right))
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            budget.spend(len(left) + len(right))
        elif operator == "*" and (isinstance(left, Sequence) or isinstance(right, Sequence)):
            values, times = (left, right) if isinstance(left, Sequence) else (right, left)
            if isinstance(times, int):
                size = len(values) * max(times, 0)
                budget.create(size) if isinstance(values, str) else budget.spend(size)
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > _LARGEST_BITS:
                raise TemplateLimitError("the product of two numbers is too large")
        elif operator == "**" and not (abs(left) <= 2**_LARGEST_EXPONENT and abs(right) <= _LARGEST_EXPONENT):
            raise TemplateLimitError(f"{left} ** {right} is too large")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"
        formatter = formatter_of(self, text)

        def formatted(*arguments: Any, **named: Any) -> str:
            budget = BUDGET.get()
            budget.create(len(text))
            values = (arguments, named) if not is_map else ((), *arguments)
            found: str = type(text)(formatter.vformat(text, *values))
            return found

        return formatted

    def call(self, context: jinja2.runtime.Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        budget = BUDGET.get()
        budget.spend(CALL)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(function, jinja2.runtime.LoopContext) and arguments:  # a recursive loop
            arguments = (iterated(arguments[0]), *arguments[1:])
        elif isinstance(owner, bytes) or (name in _REJECTED_METHODS and owner is not None):
            raise TemplateLimitError(f"the method {name} is not supported")
        elif isinstance(owner, str):
            arguments = tuple(list(budget.counted(a)) if isinstance(a, Iterator) else a for a in arguments)
            check_text_method(budget, owner, name, [*arguments, *_values(named)])
        elif isinstance(owner, _HOLDERS) or isinstance(function, types.FunctionType) or function is dict:
            if name in ("index", "count", "copy"):
                budget.visit(owner)
            for argument in arguments:
                budget.visit(argument)
        result = super().call(context, function, *arguments, **named)
        if isinstance(owner, str):
            if isinstance(result, str) and result is not owner:
                budget.create(len(result))
            elif isinstance(result, list):
                budget.create(len(owner))
                budget.spend(len(result))
        return result


def _values(named: Mapping[str, Any]) -> list[Any]:
    """Arguments by name, without those that Jinja adds to each call."""
    return [value for name, value in named.items() if not name.startswith("_")]


@jinja2.pass_context
def _finalized(context: jinja2.runtime.Context, value: Any) -> Any:
    return value if isinstance(value, (str, *SCALARS)) else as_text(value)
