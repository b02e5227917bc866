"""Guided decoding: outputs follow their constraint, whatever the sampling, and end where it does."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from openvino_toy import EOS, VOCABULARY, Toy, deltas, run, toy_tokenizer
from sage_infer.contracts import collect_text
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import DecodeState, GuidedDecoding, SamplingParams
from sage_infer.schemas.codec import from_json, to_json
from sage_infer_openvino.engine.grammar import GrammarCompiler, GrammarMatcher
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
        ({"regex": "(?=a)b"}, InvalidRequest, "look-around"),
        ({"json_schema": {"type": "objekt"}}, InvalidRequest, "Invalid type: objekt"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, UnsupportedFeature, "uniqueItems"),
        ({"grammar": 'start: "yes'}, InvalidRequest, "lexer error"),
        ({"grammar": 'root ::= "yes" | ('}, InvalidRequest, "neither Lark nor GBNF"),
    ],
)
def test_constraints_that_cannot_be_are_refused_at_once(
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
            with pytest.raises(InvalidRequest, match="the constraint cannot be followed"):
                await deltas(stream)
            assert len(await deltas(other)) == 30
            await toy.idle()
            assert toy.backend.stats().finished == 2

    run(main())


def test_masks() -> None:
    factory = GrammarCompiler(toy_tokenizer(), VOCABULARY)
    grammar = factory.compile(GuidedDecoding(regex="ab?"))
    assert grammar.allowed(VOCABULARY).nonzero()[0].tolist() == [ord("a")]
    other = grammar.copy()
    assert not grammar.accept(ord("a"))
    assert sorted(grammar.allowed(VOCABULARY).nonzero()[0].tolist()) == [ord("b"), EOS]
    assert grammar.accept(ord("b"))
    assert other.allowed(VOCABULARY).nonzero()[0].tolist() == [ord("a")]


def test_compiled_constraints_are_kept_for_a_while() -> None:
    factory = GrammarCompiler(toy_tokenizer(), VOCABULARY)
    for i in range(70):
        factory.compile(GuidedDecoding(regex=f"{i}"))
        factory.compile(GuidedDecoding(regex="0"))
    assert len(factory._kept) == 64


def test_a_model_without_an_end_cannot_be_guided() -> None:
    bare = TextTokenizer(toy_tokenizer()._tokenizer, TokenizerMeta())
    with pytest.raises(UnsupportedFeature, match="end-of-sequence"):
        GrammarCompiler(bare, VOCABULARY).compile(GuidedDecoding(choice=("a",)))
