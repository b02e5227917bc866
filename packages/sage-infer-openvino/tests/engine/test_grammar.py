"""Guided decoding: outputs match their constraint with any sampling, and end with it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from openvino_toy import EOS, VOCABULARY, Toy, deltas, run, toy_tokenizer
from sage_infer.contracts import collect_text
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import DecodeState, GuidedDecoding, SamplingParams
from sage_infer.schemas.codec import from_json, to_json
from sage_infer_openvino.engine.grammar.compiler import GrammarCompiler, GrammarMatcher
from sage_infer_openvino.engine.grammar.form import CompileError
from sage_infer_openvino.engine.grammar.trial import Trial
from sage_infer_openvino.models.tokenizer import TextTokenizer, TokenizerMeta

PROMPT = [5, 6, 7]
SCHEMA = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}, "colour": {"enum": ["red", "é ☃"]}},
    "required": ["ready", "colour"],
    "additionalProperties": False,
}


def is_answer(text: str) -> bool:
    value = json.loads(text)
    assert text == json.dumps(value, ensure_ascii=False)  # no white space of its own
    return set(value) == {"ready", "colour"} and value["colour"] in ("red", "é ☃")


CONSTRAINTS: dict[str, tuple[GuidedDecoding, Callable[[str], Any]]] = {
    "json": (GuidedDecoding(json_schema=SCHEMA), is_answer),
    "regex": (GuidedDecoding(regex="[0-9]{4}-[ab]{2,3}"), re.compile("[0-9]{4}-[ab]{2,3}").fullmatch),
    "choice": (
        GuidedDecoding(choice=("red", "red wine", 'é "☃"\n')),
        {"red", "red wine", 'é "☃"\n'}.__contains__,
    ),
    "lark": (GuidedDecoding(grammar='start: "yes" | "no" "!"*'), re.compile("yes|no!*").fullmatch),
    "gbnf": (GuidedDecoding(grammar='root ::= "yes" | "no"'), re.compile("yes|no").fullmatch),
}


def guided(constraint: GuidedDecoding, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 120, "guided": constraint, **more})


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize(
    "more",
    [
        {"n": 4, "seed": 1},
        {"temperature": 0.0},
        {"ignore_eos": True, "seed": 2},
        {"min_tokens": 100, "seed": 3},
        {"top_p": 0.2, "top_k": 3, "min_p": 0.5, "repetition_penalty": 3.0, "seed": 4},
    ],
    ids=["n", "greedy", "ignore_eos", "min_tokens", "cuts"],
)
def test_outputs_follow(kind: str, more: dict[str, Any]) -> None:
    constraint, follows = CONSTRAINTS[kind]

    async def main() -> None:
        async with Toy() as toy:
            parts = await deltas(await toy.generate(PROMPT, guided(constraint, **more)))
            for index in range(more.get("n", 1)):
                own = [delta for delta in parts if delta.index == index]
                if own[-1].finish_reason == "stop":
                    text = "".join(delta.text for delta in own)
                    assert follows(text), text
                else:  # "!"* may go on
                    assert kind == "lark"
            await toy.idle()

    run(main())


def test_guided_and_free_requests_share_a_batch() -> None:
    async def main() -> None:
        async with Toy(num_blocks=14) as toy:  # so that some are preempted
            constraint, follows = CONSTRAINTS["json"]
            free = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
            alone = await collect_text(await toy.generate(PROMPT, free))
            jobs = [
                await toy.generate(PROMPT, guided(constraint, seed=i) if i % 2 else free, priority=i % 2)
                for i in range(6)
            ]
            texts = await asyncio.gather(*map(collect_text, jobs))
            assert all(follows(text) for text in texts[1::2])
            assert texts[0::2] == [alone] * 3
            assert toy.backend.stats().extensions["preemptions"] > 0
            await toy.idle()

    run(main())


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_prefill_decode_and_import_go_on_with_the_constraint(kind: str) -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            params = guided(CONSTRAINTS[kind][0], seed=9)
            whole = await deltas(await here.generate(PROMPT, params))
            state = (await here.backend.prefill(PROMPT, request_id="a", params=params)).states[0]
            moved, buffers = await here.backend.export_kv(state)
            assert await deltas((await here.backend.decode(state, request_id="b")).stream) == whole
            arrived = await there.backend.import_kv(from_json(to_json(moved), DecodeState), buffers)
            assert await deltas((await there.backend.decode(arrived, request_id="c")).stream) == whole

    run(main())


@pytest.mark.parametrize(
    ("constraint", "error", "says"),
    [
        ({"regex": "[0-9"}, InvalidRequest, "unclosed character class"),
        ({"regex": "(?=a)b"}, UnsupportedFeature, "look-around"),
        ({"json_schema": {"type": "objekt"}}, InvalidRequest, "Invalid type: objekt"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, UnsupportedFeature, "uniqueItems"),
        (
            {
                "json_schema": {
                    "properties": {},
                    "required": ["b"],
                    "type": "object",
                    "additionalProperties": False,
                }
            },
            InvalidRequest,
            "'b' is unsatisfiable; declare it in properties",
        ),
        ({"grammar": 'start: "yes'}, InvalidRequest, "lexer error"),
        ({"grammar": 'root ::= "yes" | ('}, InvalidRequest, "neither Lark nor GBNF"),
    ],
)
def test_impossible_constraints_are_rejected_immediately(
    constraint: dict[str, Any], error: type[Exception], says: str
) -> None:
    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(error, match=says) as caught:
                await toy.generate(PROMPT, guided(GuidedDecoding(**constraint)))
            assert "\n" not in str(caught.value)
            assert toy.backend.stats().waiting == 0

    run(main())


def test_a_constraint_that_fails_midway_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = GrammarMatcher.accept

    def wrongly(self: GrammarMatcher, token: int) -> bool:
        return accept(self, 0 if token != ord("x") else token)

    async def main() -> None:
        async with Toy() as toy:
            monkeypatch.setattr(GrammarMatcher, "accept", wrongly)
            stream = await toy.generate(PROMPT, guided(GuidedDecoding(regex="[0-9]{9}"), n=2))
            other = await toy.generate(
                PROMPT, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
            )
            with pytest.raises(InvalidRequest, match="the constraint cannot be satisfied"):
                await deltas(stream)
            assert len(await deltas(other)) == 30
            await toy.idle()
            assert toy.backend.stats().finished == 2

    run(main())


def test_masks() -> None:
    compiler = GrammarCompiler(toy_tokenizer(), VOCABULARY)
    grammar = compiler.compile(GuidedDecoding(regex="ab?"))
    compiler.close()
    assert grammar.allowed(VOCABULARY).nonzero()[0].tolist() == [ord("a")]
    other = grammar.copy()
    assert not grammar.accept(ord("a"))
    assert sorted(grammar.allowed(VOCABULARY).nonzero()[0].tolist()) == [ord("b"), EOS]
    assert grammar.accept(ord("b"))
    assert other.allowed(VOCABULARY).nonzero()[0].tolist() == [ord("a")]


def test_compiled_constraints_are_kept_by_their_size(compiler: GrammarCompiler) -> None:
    long = "a" * 10_000
    for i in range(150):
        compiler.compile(GuidedDecoding(regex=f"{i}{long}"))
        compiler.compile(GuidedDecoding(regex="0"))
    assert sum(len(text) for _, text in compiler._kept) <= 2**20
    assert ("regex", "0") in compiler._kept
    assert len(compiler._kept) > 50


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(toy_tokenizer(), VOCABULARY)
    yield compiler
    compiler.close()


def chain(links: int) -> dict[str, Any]:
    links_ = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return {"$defs": links_ | {f"d{links}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def rules(count: int) -> str:
    lines = [f'r{i}: "a" r{i + 1}' for i in range(count)]
    return "\n".join(["start: r0", *lines, f'r{count}: "b"'])


@pytest.mark.parametrize(
    "constraint",
    [
        GuidedDecoding(json_schema=chain(5000)),
        GuidedDecoding(grammar=rules(6000)),
        GuidedDecoding(grammar=rules(3000)),
    ],
    ids=["chain of references", "chain of rules", "half as long"],
)
def test_a_compiler_crash_fails_only_its_request(
    compiler: GrammarCompiler, constraint: GuidedDecoding
) -> None:
    """Each of these is a stack overflow in llguidance."""
    with pytest.raises(InvalidRequest, match="too complex to compile"):
        compiler.compile(constraint)
    assert compiler._trial is not None
    child = compiler._trial._child
    compiler._refused.clear()
    with pytest.raises(InvalidRequest, match="too complex to compile"):
        compiler.compile(constraint)
    assert compiler.compile(GuidedDecoding(regex="ab")).allowed(VOCABULARY).any()
    assert compiler._trial._child is child, "the vocabulary was read again"


def test_a_constraint_that_was_refused_is_not_compiled_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    run = Trial.run

    def counted(self: Trial, kind: str, text: str) -> str:
        tried.append(kind)
        return run(self, kind, text)

    monkeypatch.setattr(Trial, "run", counted)
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="cannot be compiled"):
            compiler.compile(GuidedDecoding(regex="(("))
        with pytest.raises(UnsupportedFeature, match="is not supported"):
            compiler.compile(GuidedDecoding(json_schema={"type": "array", "uniqueItems": True}))
    assert tried == ["regex", "json_schema"]
    for i in range(300):
        with pytest.raises(InvalidRequest):
            compiler.compile(GuidedDecoding(regex="(" * (i + 3)))
    assert len(compiler._refused) == 256


def test_slow_constraints_time_out() -> None:
    tokenizer = toy_tokenizer()
    trial = Trial(tokenizer.to_json(), VOCABULARY, list(tokenizer.eos_token_ids), cpu_s=0.02)
    keys = {f"key{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 1}}}$"} for i in range(900)}
    try:
        with pytest.raises(CompileError, match=r"took more than 0\.02 s"):
            trial.run("json_schema", json.dumps({"type": "object", "properties": keys}))
        assert trial.run("regex", "a")
    finally:
        trial.close()


def test_files_in_the_working_directory_do_not_get_into_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    tokenizer = toy_tokenizer()
    trial = Trial(tokenizer.to_json(), VOCABULARY, list(tokenizer.eos_token_ids))
    try:
        assert trial.run("regex", "a")
    finally:
        trial.close()


def test_the_child_ends_with_the_compiler(compiler: GrammarCompiler) -> None:
    compiler.compile(GuidedDecoding(regex="a"))
    assert compiler._trial is not None
    child = compiler._trial._child
    assert child is not None
    assert child.poll() is None
    compiler.close()
    assert child.poll() is not None
    compiler.close()


@pytest.mark.parametrize(
    "name", ["path", "password", "binary", "byte", "uri-reference", "iri", "regex", "x-own"]
)
def test_formats_that_are_not_known_are_annotations(compiler: GrammarCompiler, name: str) -> None:
    text = {"type": "string", "format": name}
    schema = {
        "type": "object",
        "properties": {
            "format": text,
            "list": {"type": "array", "items": text},
            "fixed": {"const": {"format": name}},
        },
        "required": ["format", "list", "fixed"],
    }
    matcher = compiler.compile(GuidedDecoding(json_schema=schema))
    answer = '{"format": "x y", "list": ["\u00e9"], "fixed": {"format": "' + name + '"}}'
    assert accepts(matcher, answer)


def accepts(matcher: GrammarMatcher, text: str) -> bool:
    """Whether a text, a byte a token as the toy's vocabulary has it, follows the constraint and may end."""
    for byte in text.encode():
        if not matcher.allowed(VOCABULARY)[byte]:
            return False
        matcher.accept(byte)
    return bool(matcher.allowed(VOCABULARY)[EOS])


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OTHER = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}


@pytest.mark.parametrize(
    ("schema", "text", "follows"),
    [
        (NAMED, '{"a": 1}', True),
        (NAMED, '{"a": 1, "type": "Math"}', False),
        ({"type": "object", "properties": {}}, "{}", True),
        ({"type": "object", "properties": {}}, '{"a": 1}', False),
        ({"type": "object"}, '{"a": 1}', True),
        ({**NAMED, "additionalProperties": True}, '{"a": 1, "type": "Math"}', True),
        ({**NAMED, "additionalProperties": {"type": "boolean"}}, '{"a": 1, "x": true}', True),
        ({"type": "object"}, '{"x": 1}', True),
        ({"$ref": "#/$defs/n", "$defs": {"n": NAMED}}, '{"a": 1, "x": 1}', False),
        ({"allOf": [NAMED, OTHER]}, '{"a": 1, "b": 2}', True),
        ({"anyOf": [NAMED, OTHER]}, '{"b": 1, "c": 2}', False),
        ({**NAMED, "required": ["a", "c"]}, '{"a": 1, "c": [true, {}]}', True),
        ({**NAMED, "required": ["a", "c"]}, '{"a": 1}', False),
        ({**NAMED, "required": ["a", "c"]}, '{"a": 1, "c": 1, "d": 1}', False),
        ({**NAMED, "required": ["c"], "additionalProperties": {"type": "boolean"}}, '{"c": true}', True),
        ({**NAMED, "required": ["c"], "patternProperties": {"^c": {"type": "null"}}}, '{"c": null}', True),
        ({"type": "object", "properties": {}, "required": ["c"]}, '{"c": ""}', True),
        ({"anyOf": [{**NAMED, "required": ["c"]}, OTHER]}, '{"c": 1}', True),
    ],
)
def test_objects_are_closed_unless_their_schema_says_otherwise(
    compiler: GrammarCompiler, schema: dict[str, Any], text: str, follows: bool
) -> None:
    assert accepts(compiler.compile(GuidedDecoding(json_schema=schema)), text) == follows


@pytest.mark.parametrize(
    ("vocab_size", "eos"),
    [(VOCABULARY - 2, (EOS,)), (VOCABULARY, (EOS, VOCABULARY + 5)), (VOCABULARY, (EOS, -1))],
)
def test_tokens_beyond_the_embedding_and_ends_beyond_both(vocab_size: int, eos: tuple[int, ...]) -> None:
    tokenizer = TextTokenizer(
        toy_tokenizer()._tokenizer, attrs.evolve(toy_tokenizer().meta, eos_token_ids=eos)
    )
    compiler = GrammarCompiler(tokenizer, vocab_size)
    matcher = compiler.compile(GuidedDecoding(regex="ab"))
    compiler.close()
    assert matcher.allowed(vocab_size).nonzero()[0].tolist() == [ord("a")]
    assert len(matcher.allowed(vocab_size)) == vocab_size


def test_a_model_without_an_end_cannot_be_guided() -> None:
    bare = TextTokenizer(toy_tokenizer()._tokenizer, TokenizerMeta())
    with pytest.raises(UnsupportedFeature, match="end-of-sequence"):
        GrammarCompiler(bare, VOCABULARY).compile(GuidedDecoding(choice=("a",)))
