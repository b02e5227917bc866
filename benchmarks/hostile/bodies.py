"""Bodies that are dear to read: each is valid HTTP, and most are valid JSON of the expected form."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

__all__ = ["BODIES"]

LLM, ENCODER = "smollm2-135m", "minilm"
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SAY = [{"role": "user", "content": "Hello"}]
MB = 10**6

Body = tuple[str, Any, str]
"""Path, body (JSON, or bytes), and further header lines."""
BODIES: dict[str, Callable[[], Iterator[Body]]] = {}
"""By name, a function that gives bodies: one that is sent again and again, or an endless sequence."""


def body(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function of one body: a chat's further fields, or path and body."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        def bodies() -> Iterator[Body]:
            made = make()
            if isinstance(made, Iterator):
                yield from map(_body, made)
            else:
                yield _body(made)

        BODIES[name] = bodies
        return make

    return register


def _body(made: Any) -> Body:
    if isinstance(made, dict):
        return CHAT, {"model": LLM, "messages": SAY, "max_tokens": 4, **made}, ""
    path, given, *head = made
    return path, given, head[0] if head else ""


def _schema(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }


def _tool(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", **more}}


# --- constraints


@body("chain of 3,000 references")
def _() -> Any:
    definitions: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}
    definitions["d3000"] = {"type": "string"}
    return _schema({"$defs": definitions, "$ref": "#/$defs/d0"})


@body("chain of 3,000 objects by reference")
def _() -> Any:
    definitions: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]}
        for i in range(2999)
    }
    definitions["d2999"] = {"type": "string"}
    return {"guided_json": {"$defs": definitions, "$ref": "#/$defs/d0"}}


@body("references that double at each of 40 levels")
def _() -> Any:
    definitions: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}}] * 2} for i in range(40)
    }
    definitions["d40"] = {"type": "string"}
    return _schema({"$defs": definitions, "$ref": "#/$defs/d0"})


@body("allOf of 2,000 patterns")
def _() -> Any:
    return _schema({"allOf": [{"type": "string", "pattern": f"^[a-z]*{i}[a-z]*$"} for i in range(2000)]})


@body("object of 6,000 optional properties")
def _() -> Any:
    return _schema({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(6000)}})


@body("enumeration of 9,000 texts, another each time")
def _() -> Any:
    return (_schema({"enum": [f"{round_}.{i}.{i * 7919}" for i in range(9000)]}) for round_ in count())


@body("enumeration of a million numbers")
def _() -> Any:
    return _schema({"enum": list(range(1_000_000))})


@body("grammar of 20,000 chained rules")
def _() -> Any:
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(20_000))
    return {"guided_grammar": f"start: r0\n{rules}\nr20000: /a/"}


@body("grammar of 3,000 chained rules")
def _() -> Any:
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(3000))
    return {"guided_grammar": f"start: r0\n{rules}\nr3000: /a/"}


@body("ambiguous grammar")
def _() -> Any:
    return {"guided_grammar": "start: s\ns: s s s | s s | /[a-z ]/ | /[a-z ]*/ |", "max_tokens": 64}


@body("20,000 choices")
def _() -> Any:
    return {"guided_choice": [f"choice number {i}" for i in range(20_000)]}


@body("300,000 choices")
def _() -> Any:
    return {"guided_choice": [f"choice number {i}" for i in range(300_000)]}


@body("4,000 choices, others each time")
def _() -> Any:
    return ({"guided_choice": [f"{round_}: {i} " + "x" * 40 for i in range(4000)]} for round_ in count())


@body("regular expression of nested quantifiers")
def _() -> Any:
    return {"guided_regex": "(" * 200 + "a" + "+)*" * 200}


@body("regular expression of counted repeats")
def _() -> Any:
    return {"guided_regex": "((((a{1,100}){1,100}){1,100}){1,100}b){1,1000}"}


@body("regular expression whose automaton is exponential")
def _() -> Any:
    return ({"guided_regex": f"[ab]*a[ab]{{{400 + i % 100}}}", "max_tokens": 64} for i in count())


@body("1,000 tools of a hundred properties, one required")
def _() -> Any:
    parameters = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100)}}
    tools = [_tool(i, parameters=parameters) for i in range(1000)]
    return {"tools": tools, "tool_choice": "required"}


# --- numbers and sizes


@body("nesting of 500,000 arrays")
def _() -> Any:
    deep = b"[" * 500_000 + b"]" * 500_000
    return CHAT, b'{"model":"%b","messages":%b}' % (LLM.encode(), deep)


@body("nesting of 500,000 objects in metadata")
def _() -> Any:
    deep = b'{"a":' * 500_000 + b"1" + b"}" * 500_000
    return CHAT, b'{"messages":%b,"metadata":%b}' % (json.dumps(SAY).encode(), deep)


@body("prompt of 10 MB of words")
def _() -> Any:
    return {"messages": [{"role": "user", "content": "some words " * 900_000}]}


@body("prompt of 10 MB without a blank")
def _() -> Any:
    return {"messages": [{"role": "user", "content": "a" * 10 * MB}]}


@body("prompt of 10 MB of control characters")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": "\x00\x07" * (10 * MB // 12)}


@body("prompt of 15 MB of special tokens")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": "<|im_start|>" * (15 * MB // 12)}


@body("300,000 messages")
def _() -> Any:
    return {"messages": SAY * 300_000}


@body("4,096 messages of 3 kB")
def _() -> Any:
    return {"messages": [{"role": "user", "content": "some words " * 300}] * 4096}


@body("4,096 messages of 1,024 parts")
def _() -> Any:
    message = {"role": "user", "content": [{"type": "text", "text": ""}] * 1024}
    return {"messages": [message] * 400}


@body("model name of 16 MB")
def _() -> Any:
    return {"model": "m" * (16 * MB)}


@body("40,000 tools")
def _() -> Any:
    return {"tools": [_tool(i) for i in range(40_000)]}


@body("1,024 tools of 15 kB")
def _() -> Any:
    return {"tools": [_tool(i, description="x" * 15_000) for i in range(1024)]}


@body("a million prompts of one letter")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": ["a"] * 1_000_000}


@body("1,000 prompts, 128 completions each")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": ["a"] * 1000, "n": 128}


@body("2,048 prompts of 7 kB")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": ["some words " * 640] * 2048, "max_tokens": 1}


@body("prompt of 3,000,000 token ids")
def _() -> Any:
    return COMPLETIONS, {"model": LLM, "prompt": [1234] * 3_000_000}


@body("stop text of 15 MB")
def _() -> Any:
    return {"stop": "x" * (15 * MB)}


@body("a million stop texts")
def _() -> Any:
    return {"stop": [f"{i}" for i in range(1_000_000)]}


@body("two million stop token ids")
def _() -> Any:
    return {"stop_token_ids": list(range(2_000_000))}


@body("logit_bias of 700,000 tokens")
def _() -> Any:
    return {"logit_bias": {str(i): 1 for i in range(700_000)}}


@body("metadata and user of 15 MB")
def _() -> Any:
    return {"user": "x" * (8 * MB), "metadata": {f"k{i}": "v" for i in range(500_000)}, "n": 1000}


@body("a million unknown fields")
def _() -> Any:
    return {**{f"x{i}": 1 for i in range(1_000_000)}, "n": 1000}


@body("chat_template_kwargs of three million objects")
def _() -> Any:
    return CHAT, b'{"messages":%b,"chat_template_kwargs":{"a":[{}%b]}}' % (
        json.dumps(SAY).encode(), b",{}" * 3_000_000,
    )  # fmt: skip


@body("schema of three million objects")
def _() -> Any:
    return CHAT, b'{"messages":%b,"guided_json":{"enum":[{}%b]}}' % (
        json.dumps(SAY).encode(), b",{}" * 3_000_000,
    )  # fmt: skip


@body("arguments of earlier calls of three million objects")
def _() -> Any:
    function = {"name": "f", "arguments": '{"a":[{}' + ",{}" * 3_000_000 + "]}"}
    called = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return {"messages": [called, *SAY]}


@body("image of three million objects")
def _() -> Any:
    parts = b'[{"type":"image_url","image_url":{"url":[{}%b]}}]' % (b",{}" * 3_000_000)
    return CHAT, b'{"messages":[{"role":"user","content":%b}]}' % parts


@body("number of 15 million digits")
def _() -> Any:
    return CHAT, b'{"messages":%b,"seed":%b}' % (json.dumps(SAY).encode(), b"9" * 15 * MB)


@body("15 MB of escaped characters")
def _() -> Any:
    return CHAT, b'{"messages":[{"role":"user","content":"%b"}]}' % (b"\\u0041" * (15 * MB // 6))


@body("embeddings of 100,000 texts")
def _() -> Any:
    return EMBEDDINGS, {"model": ENCODER, "input": ["some words"] * 100_000}


@body("embeddings of 2,048 texts of 7 kB")
def _() -> Any:
    return EMBEDDINGS, {"model": ENCODER, "input": ["some words " * 640] * 2048}


@body("embedding of 10 MB without a blank")
def _() -> Any:
    return EMBEDDINGS, {"model": ENCODER, "input": "a" * (10 * MB)}


@body("rerank of 100,000 documents")
def _() -> Any:
    return "/v1/rerank", {"model": ENCODER, "query": "x", "documents": ["some words"] * 100_000}


@body("tokenize 10 MB")
def _() -> Any:
    return "/tokenize", {"model": LLM, "prompt": "ab" * (5 * MB)}


@body("detokenize 3,000,000 tokens")
def _() -> Any:
    return "/detokenize", {"model": LLM, "tokens": [1234] * 3_000_000}


@body("another unknown model each time")
def _() -> Any:
    return ({"model": f"model-{i}-" + "x" * 400} for i in count())


@body("body in gzip that unpacks to 10 GB")
def _() -> Any:
    return CHAT, gzip.compress(b"x" * 10 * MB), "Content-Encoding: gzip\r\n"


@body("deadline of 60,000 digits")
def _() -> Any:
    fields = {"model": LLM, "messages": SAY, "max_tokens": 1}
    return CHAT, fields, f"X-Sage-Deadline-Ms: {'9' * 60_000}\r\n"
