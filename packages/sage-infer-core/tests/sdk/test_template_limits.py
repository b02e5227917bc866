"""Templates of model files cannot fill the memory or keep the server busy; those that prompts need are unchanged."""

from __future__ import annotations

import pytest
from sage_infer.errors import InvalidRequest, ModelFileError
from sage_infer.sdk.chat_templates import ChatTemplate, TemplateTooCostly

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
NS = "{% set ns = namespace(x='ab', l=[], o=[], n=3, t=(), d={}) %}"


def again(change: str, end: str = "", times: int = 64) -> str:
    return f"{NS}{{% for i in range({times}) %}}{change}{{% endfor %}}{end}"


DOUBLING = {
    "~": "{% set ns.x = ns.x ~ ns.x %}",
    "+": "{% set ns.x = ns.x + ns.x %}",
    "*": "{% set ns.x = ns.x * 2 %}",
    "+ of lists": "{% set ns.l = ns.l + ns.l + [1] %}",
    "* of lists": "{% set ns.l = (ns.l + [1]) * 2 %}",
    "square": "{% set ns.n = ns.n * ns.n %}",
    "join": "{% set ns.x = [ns.x, ns.x]|join(ns.x) %}",
    "join of a text": "{% set ns.x = ns.x.join([ns.x, ns.x]) %}",
    "%": "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
    "% with names": "{% set ns.x = '%(a)s%(a)s' % {'a': ns.x} %}",
    "format filter": "{% set ns.x = '%s%s'|format(ns.x, ns.x) %}",
    "format": "{% set ns.x = '{0}{0}'.format(ns.x) %}",
    "format_map": "{% set ns.x = '{a}{a}'.format_map({'a': ns.x}) %}",
    "replace": "{% set ns.x = ns.x|replace('a', ns.x) %}",
    "replace of a text": "{% set ns.x = ns.x.replace('', ns.x) %}",
    "set block": "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    "filter block": "{% set y %}{% filter upper %}{{ ns.x }}{{ ns.x }}{% endfilter %}{% endset %}{% set ns.x = y %}",
    "escaped": "{% set ns.x = (ns.x ~ '&')|escape + ns.x %}",
    "sum": "{% set ns.l = [ns.l, ns.l]|sum(start=[1]) %}",
    "tojson": "{% set ns.x = (ns.x ~ ns.x)|tojson %}",
}
LARGE = {
    "repeat": "{{ 'a' * 10000000000 }}",
    "repeat list": "{{ ([1] * 10000000000)|length }}",
    "repeat from the right": "{{ 10000000000 * 'a' }}",
    "%d": "{{ '%1000000000d' % 1 }}",
    "precision": "{{ '%.1000000000f' % 1 }}",
    "%*d": "{{ '%*d' % (1000000000, 1) }}",
    "nested name": "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format with zeros": "{{ '{:>0000000001000000000}'.format(1) }}",
    "format with a nested width": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "format of escaped": "{{ ('{:>1000000000}'|escape).format(1) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "center filter": "{{ 'a'|center(1000000000) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "tojson": "{{ [1]|tojson(indent=1000000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "round": "{{ 5|round(-1000000000) }}",
    "power": "{{ 9 ** 999999999 }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "urlize": "{{ 'x'|urlize }}",
    "encode": "{{ 'a'.encode() * 1000000000 }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "translate": "{% set x = 'a' * 1000000 %}{{ x.translate({97: x}) }}",
    "ranges": "{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "joined pieces": "{% macro m() %}{% for i in range(9999) %}"
    + "x" * 10_000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "output": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
}
BUSY = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for a in 'abcdefghij' %}" * 9 + "x" + "{% endfor %}" * 9,
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if b > 99999 %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in 'abcde' recursive %}{{ loop('abcde') if loop.depth < 9 }}{% endfor %}",
    "wide recursion": "{% for a in 'ab' recursive %}{{ loop('ab' * 4000) if loop.depth < 4 }}{% endfor %}",
    "macros": "".join(
        f"{{% macro m{i}() %}}{{{{ m{i + 1}() }}}}{{{{ m{i + 1}() }}}}{{% endmacro %}}" for i in range(60)
    )
    + "{% macro m60() %}{% endmacro %}{{ m0() }}",
    "callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 40
    + "{% endcall %}" * 40,
    "blocks": "".join(
        f"{{% block b{i} %}}{{{{ self.b{i + 1}() }}}}{{{{ self.b{i + 1}() }}}}{{% endblock %}}"
        for i in range(60)
    )
    + "{% block b60 %}{% endblock %}",
    "slices": "{% set x = 'a' * 3000000 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "upper": "{% set x = 'a' * 3000000 %}{% for i in range(99999) %}{% set y = x|upper %}{% endfor %}",
    "search": "{% set x = 'a' * 3000000 %}{% for i in range(99999) %}{% set y = 'b' in x %}{% endfor %}",
    "find": "{% set x = 'a' * 3000000 %}{% for i in range(99999) %}{% set y = x.find('b') %}{% endfor %}",
    "split": "{% set x = 'a' * 3000000 %}{% set y = x.split('a') %}",
    "items": "{% set x = 'a' * 3000000 %}{% set y = x|list %}",
    "map": "{% set x = ['a'] * 90000 %}{% for i in range(99999) %}{% set y = x|map('upper')|list %}{% endfor %}",
    "in a range": "{% for i in range(99999) %}{% set y = 'x' in range(99999) %}{% endfor %}",
}
NEST = "{% set ns.l = [ns.l, ns.l] %}{% set ns.o = [ns.o, ns.o] %}{% set ns.t = (ns.t, ns.t) %}"
SHARED = {
    "output": "{{ ns.l }}",
    "~": "{{ ns.l ~ 'x' }}",
    "string": "{{ ns.l|string|length }}",
    "tojson": "{{ ns.l|tojson }}",
    "join": "{{ ns.l|join }}",
    "%s": "{{ '%s' % ns.o }}",
    "format": "{{ '{}'.format(ns.l) }}",
    "format!r": "{{ '{!r}'.format(ns.l) }}",
    "==": "{{ ns.l == ns.o }}",
    "in": "{{ ns.l in [ns.o] }}",
    "is in": "{{ ns.l is in [ns.o] }}",
    "is eq": "{{ ns.l is eq(ns.o) }}",
    "is upper": "{{ ns.l is upper }}",
    "sort": "{{ [ns.l, ns.o]|sort|length }}",
    "unique": "{{ [ns.t]|unique|list|length }}",
    "key": "{{ {ns.t: 1}|length }}",
    "subscript": "{{ {}[ns.t] }}",
    "get": "{{ {}.get(ns.t) }}",
    "index": "{{ [ns.l].index(ns.o) }}",
    "changed": "{% for i in range(2) %}{{ loop.changed(ns.l if i else ns.o) }}{% endfor %}",
    "raise": "{{ raise_exception(ns.l) }}",
    "generator": "{{ ([ns.l]|map('string')|list)|length }}",
    "namespace": "{{ namespace(a=ns.l) }}",
    "macro": "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(ns.l) }}",
}
TOO_COSTLY = {
    **{f"doubled by {name}": again(change) for name, change in DOUBLING.items()},
    **{f"large: {name}": text for name, text in LARGE.items()},
    **{f"busy: {name}": text for name, text in BUSY.items()},
    **{f"shared parts: {name}": again(NEST, end) for name, end in SHARED.items()},
    "deep tuples": again("{% set ns.t = (ns.t,) %}", "{{ {ns.t: 1}|length }}", times=90_000),
    "a cycle": f"{NS}{{% set ns.x = ns %}}{{{{ ns }}}}",
}


@pytest.mark.parametrize("text", TOO_COSTLY.values(), ids=TOO_COSTLY)
def test_a_template_that_computes_too_much_is_named(text: str) -> None:
    with pytest.raises(
        TemplateTooCostly, match=r"model's chat template tool_use exceeds what .* \((line \d: |it)"
    ):
        ChatTemplate(text, "chat template tool_use").render(CHAT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ '%s of 2024, %5.1f%% (%(x)s' }}", "%s of 2024, %5.1f%% (%(x)s"),
        ("{{ 'In 2024: %s, %5.1f%%, %03d' % ('x', 1.25, 7) }}", "In 2024: x,   1.2%, 007"),
        ("{{ 'In 20240: %(a)s' % {'a': 1} }}", "In 20240: 1"),
        ("{{ 'In 20240: {:>5}, {a[b]!r:.3}'.format(1, a={'b': 'xyz'}) }}", "In 20240:     1, 'xy"),
        ("{{ '{a}'.format_map({'a': 1}) }}{{ ('<{}>'|escape).format('&') }}", "1&lt;&amp;&gt;"),
        ("{{ 'a\nb'|indent(2) }}{{ 'a\nb'|indent('> ', true) }}", "a\n  b> a\n> b"),
        ("{{ 'a b'.split() }}{{ 'a-b'.split('-')[-1] }}{{ 'ab'|list }}", "['a', 'b']b['a', 'b']"),
        ("{{ 'aXa'|replace('X', 'yy') }}{{ 'aXXa'.replace('X', 'y', 1) }}", "ayyaayXa"),
        ("{{ [1, 2]|join(', ') }}{{ ', '.join(['a']) }}{{ ', '.join(['a', 'b']|map('upper')) }}", "1, 2aA, B"),
        ("{{ {'b': [1, none]}|tojson(indent=2) }}", '{\n  "b": [\n    1,\n    null\n  ]\n}'),
        ("{{ messages|length }}{{ messages|map(attribute='role')|join('|') }}", "2user|assistant"),
        ("{% for m in messages[::-1] %}{{ loop.revindex }}{{ m.role[0] }}{{ loop.last }}{% endfor %}", "2aFalse1uTrue"),
        ("{% for m in messages|selectattr('role', 'eq', 'user') %}{{ m.content }}{{ loop.length }}{% endfor %}", "Hi1"),
        ("{% for k, v in messages[0]|dictsort %}{{ k }}={{ v }};{% endfor %}", "content=Hi;role=user;"),
        ("{% for k, v in messages[0].items() if k in ['role'] %}{{ k ~ '=' ~ v }}{% endfor %}", "role=user"),
        ("{% for i in range(3, 0, -1) %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% endfor %}", "32"),
        ("{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "123"),
        ("{% macro m(x, y=2) %}{{ x*y }}{{ caller() if caller }}{% endmacro %}{{ m(3) }}{% call m(1) %}c{% endcall %}",
         "62c"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x ~ none ~ missing ~ 1.5 }}", "a1None1.5"),
        ("{% autoescape true %}{{ '<' ~ '&'|safe }}{% endautoescape %}{{ '<' ~ 1 }}", "&lt;&<1"),
        ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ [1] + [2] }}{{ 'ab' * 2 }}{{ (1, 2) + (3,) }}",
         "102433[1, 2]abab(1, 2, 3)"),
        ("{{ 1 < 2 < 3 }}{{ 'a' in 'ab' }}{{ 'x' not in messages[0] }}{{ messages[0] == messages[1] }}",
         "TrueTrueTrueFalse"),
        ("{{ 5.678|round(1) }}{{ [3, 1]|sort }}{{ [1, 1]|unique|list }}{{ [1, 2]|sum }}{{ [1, 2, 3]|batch(2)|list }}",
         "5.7[1, 3][1]3[[1, 2], [3]]"),
        ("{{ messages[0].get('x', 'no') }}{{ messages[0]['role'] }}{{ messages[5] is defined }}", "nouserFalse"),
        ("{{ dict(a=1, **{'b': 2})|tojson }}{{ cycler(1, 2).next() }}{{ strftime_now('%Y')|length }}",
         '{"a": 1, "b": 2}14'),
    ],
)  # fmt: skip
def test_usual_operations_are_unchanged(text: str, said: str) -> None:
    assert ChatTemplate(text).render(CHAT) == said


def test_long_chats_are_rendered() -> None:
    text = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% if loop.index0 == messages|length - 1 %}{{ m.content|trim|length }}{% endif %}{% endfor %}"
    )
    long = [{"role": "user", "content": "x" * 3000}] * 4096
    assert len(ChatTemplate(text).render(long)) == 4096 * (3000 + len("<|im_start|>user\n<|im_end|>\n")) + 4
    assert ChatTemplate(text).render([{"role": "user", "content": "x" * 10_000_000}]).endswith("\n10000000")


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, "{{ 1 }}\ud800", "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"]
)
def test_a_source_that_is_too_long_too_deep_or_no_text_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="model's chat template"):
        ChatTemplate(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ range(99999999999)|list }}", "Range too big"),
    ],
)
def test_other_limits_are_errors(text: str, error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        ChatTemplate(text).render(CHAT)


def test_the_line_is_named() -> None:
    with pytest.raises(TemplateTooCostly, match=r"\(line 3: center with 2000 exceeds 1000\)"):
        ChatTemplate("a\nb\n{{ 'x'|center(2000) }}\n").render(CHAT)
