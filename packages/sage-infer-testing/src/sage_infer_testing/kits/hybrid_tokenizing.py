"""The kit for instances that show tokens and rendered chats of several models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import HybridTokenizing
from sage_infer.errors import EngineDead, InvalidRequest, ModelNotFound, UnsupportedFeature
from sage_infer.schemas import Prompt
from sage_infer.specs import ServedType

from sage_infer_testing.kits.opening import BackendSuite
from sage_infer_testing.reading import Output, greedy, read
from sage_infer_testing.shape import shape_problems

__all__ = ["HybridTokenizingContract"]

_TEXT = "Tokens are counted before they are paid for."
_CHAT = (
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
)
_UNKNOWN_MODEL = "no-such-model"
_UNKNOWN_TOKEN = 2**31 - 1


class HybridTokenizingContract(BackendSuite, kit=True):
    """Guarantees of a ``HybridInferenceBackend`` that is a ``HybridTokenizing``.

    Override ``make_backend`` to return an instance with registered models.

    Attributes:
        llm: id of a generative model that is loaded after ``start`` and whose backend claims ``tokenize``.
        embedder: the same for an embedding model, whose backend may lack a tokenizer; if empty, its tests are skipped.
    """

    serves: ClassVar[ServedType] = "hybrid"
    llm: ClassVar[str] = ""
    embedder: ClassVar[str] = ""

    async def _output(self, backend: Any, prompt: Any, tokens: int = 8) -> Output:
        (stream,) = await backend.generate(prompt, greedy(tokens), self.llm)
        return await read(stream)

    def _embedder(self) -> str:
        if not self.embedder:
            pytest.skip("embedder is not set")
        return self.embedder

    def test_has_the_shape_of_its_protocol(self, backend: Any) -> None:
        """Every method of ``HybridTokenizing`` exists with the parameters of the contract, and is async.

        How to fix: copy the signatures from ``sage_infer.contracts``; ``model`` is a keyword.
        """
        problems = shape_problems(backend, HybridTokenizing)
        assert not problems, f"not a HybridTokenizing: {'; '.join(problems)}"

    async def test_shown_tokens_are_those_computed(self, backend: Any) -> None:
        """A text and its token ids from ``tokenize`` are equivalent prompts of the named model.

        How to fix: forward the prompt unchanged to ``tokenize`` of the model's backend.
        """
        for prompt in (_TEXT, Prompt(text=_TEXT, add_special_tokens=False)):
            token_ids = await backend.tokenize(prompt, model=self.llm)
            of_text, of_ids = await self._output(backend, prompt), await self._output(backend, token_ids)
            computed = of_text.counted().prompt_tokens
            assert len(token_ids) == computed, f"{len(token_ids)} tokens are shown, {computed} were computed"
            assert of_ids.token_ids == of_text.token_ids, "the text and its token ids have different outputs"

    async def test_tokens_become_their_text(self, backend: Any) -> None:
        """``detokenize`` restores a text from the ids of ``tokenize``.

        How to fix: forward all ids in one call to ``detokenize`` of the same model's backend.
        """
        token_ids = await backend.tokenize(Prompt(text=_TEXT, add_special_tokens=False), model=self.llm)
        text = await backend.detokenize(token_ids, model=self.llm)
        assert text.strip() == _TEXT, f"{_TEXT!r} became {text!r}"

    async def test_unknown_token_ids_have_no_text(self, backend: Any) -> None:
        """A token id outside the model's vocabulary is an ``InvalidRequest``.

        How to fix: let the error of the model's backend pass.
        """
        for wrong in (_UNKNOWN_TOKEN, -1):
            with pytest.raises(InvalidRequest):
                await backend.detokenize([wrong], model=self.llm)

    async def test_a_rendered_chat_is_the_prompt_of_chat(self, backend: Any) -> None:
        """``render_chat`` returns the prompt that ``chat`` computes for the same messages.

        How to fix: use one function for both; forward messages, tools and template variables unchanged.
        """
        prompt = await backend.render_chat(list(_CHAT), model=self.llm)
        assert isinstance(prompt, Prompt), f"render_chat returned a {type(prompt).__name__}"
        rendered = await self._output(backend, prompt)
        chat = await read(await backend.chat(list(_CHAT), greedy(8), self.llm))
        assert rendered.counted().prompt_tokens == chat.counted().prompt_tokens, "the prompts differ"
        assert rendered.token_ids == chat.token_ids, "the rendered prompt and the chat have different outputs"

    async def test_the_start_of_the_answer_can_be_left_out(self, backend: Any) -> None:
        """With ``add_generation_prompt=False`` the prompt ends before the start of the answer.

        How to fix: forward ``add_generation_prompt`` to ``render_chat`` of the model's backend.
        """

        async def tokens(**more: Any) -> list[int]:
            prompt = await backend.render_chat(list(_CHAT), model=self.llm, **more)
            found: list[int] = await backend.tokenize(prompt, model=self.llm)
            return found

        whole, without = await tokens(), await tokens(add_generation_prompt=False)
        assert whole == await tokens(add_generation_prompt=True), "True is the default"
        assert len(without) < len(whole), "the start of the answer is in the prompt either way"

    async def test_there_is_a_default_model(self, backend: Any) -> None:
        """Without ``model``, chats are rendered by the default generative model; ``model=None`` is the same.

        How to fix: find the model as in ``generate``.
        """
        named = await backend.render_chat(list(_CHAT), model=self.llm)
        assert await backend.render_chat(list(_CHAT)) == named
        assert await backend.render_chat(list(_CHAT), model=None) == named
        token_ids = await backend.tokenize(_TEXT)
        assert token_ids == await backend.tokenize(_TEXT, model=self.llm)
        assert await backend.detokenize(token_ids) == await backend.detokenize(token_ids, model=self.llm)

    async def test_unknown_models_are_not_found(self, backend: Any) -> None:
        """An unknown model raises ``ModelNotFound`` in every call; the message has the name.

        How to fix: look up the name first, as in ``generate``.
        """
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.tokenize(_TEXT, model=_UNKNOWN_MODEL),
            lambda: backend.detokenize([1], model=_UNKNOWN_MODEL),
            lambda: backend.render_chat(list(_CHAT), model=_UNKNOWN_MODEL),
        ]
        for call in calls:
            with pytest.raises(ModelNotFound, match=_UNKNOWN_MODEL):
                await call()

    async def test_an_embedding_model_shows_its_own_tokens_or_none(self, backend: Any) -> None:
        """``tokenize`` for an embedding model returns the ids that ``embed`` counts, or raises ``UnsupportedFeature``.

        How to fix: use the backend of the named model; raise ``UnsupportedFeature`` if it is not a ``Tokenizing``.
        """
        model = self._embedder()
        try:
            token_ids = await backend.tokenize(_TEXT, model=model)
        except UnsupportedFeature:
            return
        counted = (await backend.embed([_TEXT], model=model)).usage.prompt_tokens
        assert len(token_ids) == counted, f"{len(token_ids)} tokens are shown, {counted} were computed"
        assert isinstance(await backend.detokenize(token_ids, model=model), str)

    async def test_an_embedding_model_has_no_chats(self, backend: Any) -> None:
        """``render_chat`` for an embedding model raises ``UnsupportedFeature``.

        How to fix: look for the model among generative ones.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.render_chat(list(_CHAT), model=self._embedder())

    async def test_work_after_close_is_refused(self, closed_backend: Any) -> None:
        """A closed instance raises ``EngineDead``.

        How to fix: check whether the instance is running before looking up the model.
        """
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: closed_backend.tokenize(_TEXT, model=self.llm),
            lambda: closed_backend.detokenize([1], model=self.llm),
            lambda: closed_backend.render_chat(list(_CHAT), model=self.llm),
        ]
        for call in calls:
            with pytest.raises(EngineDead):
                await call()
