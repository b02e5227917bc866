"""Long texts do not block: too long ones are rejected unread, the others are tokenized off the event loop."""

from __future__ import annotations

import threading

import pytest
from openvino_toy import Toy, deltas, run
from sage_infer.errors import ContextLengthExceeded, InvalidRequest
from sage_infer.schemas import Prompt, SamplingParams
from sage_infer_openvino.models.text_codec import INLINE_CHARACTERS, DecoderTexts
from sage_infer_openvino.models.tokenizer import TextTokenizer

SHORT = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)


@pytest.fixture
def tokenizing(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Threads in which a text was tokenized."""
    threads: list[threading.Thread] = []
    tokens_of = DecoderTexts.tokens_of

    def noted(self: DecoderTexts, prompt: Prompt) -> tuple[int, ...]:
        if prompt.text is not None:
            threads.append(threading.current_thread())
        return tokens_of(self, prompt)

    monkeypatch.setattr(DecoderTexts, "tokens_of", noted)
    return threads


def test_a_text_of_ten_megabytes_is_refused_unread(tokenizing: list[threading.Thread]) -> None:
    async def main() -> None:
        async with Toy() as toy:
            for prompts in ("a" * 10_000_000, ["a", "a" * 10_000_000]):
                with pytest.raises(ContextLengthExceeded, match="10000000 characters, which are more"):
                    await toy.backend.generate(prompts, SHORT)
            assert toy.backend.stats().waiting == 0

    run(main())
    assert tokenizing == []


def test_a_text_of_too_many_tokens_is_tokenized_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer characters than 200 of the longest tokens have, but far more tokens."""
    lengths: list[int] = []
    encode = TextTokenizer.encode

    def noted(self: TextTokenizer, text: str, add_special: bool = True) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, add_special)

    monkeypatch.setattr(TextTokenizer, "encode", noted)

    async def main() -> None:
        async with Toy() as toy:
            toy.backend._ready()[1].tokenizer.longest_token = 1000
            text = "a" * 100_000
            with pytest.raises(ContextLengthExceeded, match="more than 400 tokens"):
                await toy.backend.generate(text, SHORT)
            with pytest.raises(ContextLengthExceeded, match="more than 400 tokens"):
                await toy.backend.tokenize(text)
            assert len(await toy.backend.tokenize("a" * 1300)) == 1300, "it is counted where it is little"
            with pytest.raises(ContextLengthExceeded, match="has 1300 tokens"):
                await toy.backend.generate("a" * 1300, SHORT)

    run(main())
    assert max(lengths) <= 1700
    assert sum(lengths) < 12_000


def test_a_chat_of_ten_megabytes_is_refused_before_it_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[object] = []
    monkeypatch.setattr(TextTokenizer, "render_chat", lambda self, *args, **more: rendered.append(args))

    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(ContextLengthExceeded, match="messages have 10240000 characters"):
                await toy.backend.render_chat([{"role": "user", "content": "a" * 2500}] * 4096)

    run(main())
    assert rendered == []


def test_long_texts_are_tokenized_in_a_thread(tokenizing: list[threading.Thread]) -> None:
    async def main() -> None:
        async with Toy() as toy:
            text = "abcdefghij" * 10
            several = await toy.backend.generate([text] * (INLINE_CHARACTERS // 100 + 1), SHORT)
            assert len(tokenizing) == len(several)
            assert threading.main_thread() not in tokenizing
            tokenizing.clear()
            (one,) = await toy.backend.generate(text, SHORT)
            assert tokenizing == [threading.main_thread()]
            assert await deltas(one) == await deltas(several[0])

    run(main())


def test_what_cannot_be_accepted_is_not_tokenized(tokenizing: list[threading.Thread]) -> None:
    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(ContextLengthExceeded, match="10000000 characters"):
                await toy.backend.tokenize("a" * 10_000_000)
            with pytest.raises(
                InvalidRequest, match=r"3000 prompts in one call exceed the limit of .* \(max_queue\)"
            ):
                await toy.backend.generate(["some words"] * 3000, SHORT)

    run(main())
    assert tokenizing == []
