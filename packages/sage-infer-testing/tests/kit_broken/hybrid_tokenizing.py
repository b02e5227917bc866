"""Hybrids that show wrong tokens or prompts."""

from __future__ import annotations

from typing import Any

from kit_reference.hybrid_tokenizing import ReferenceHybridTokenizer
from sage_infer.errors import InvalidRequest, ModelNotFound
from sage_infer.schemas import Prompt
from sage_infer_testing import HybridTokenizingContract

from kit_broken.suites import suite


def tokenizing(*tests: str) -> Any:
    return suite(HybridTokenizingContract, "make_backend", *tests, llm="talker", embedder="embedder")


@tokenizing("test_has_the_shape_of_its_protocol")
class TakesTheModelByPosition(ReferenceHybridTokenizer):
    async def tokenize(self, prompt: Any, name: Any = None) -> Any:  # type: ignore[override]
        return await super().tokenize(prompt, model=name)


@tokenizing("test_shown_tokens_are_those_computed")
class ForgetsSpecialTokens(ReferenceHybridTokenizer):
    async def tokenize(self, prompt: Any, *, model: Any = None) -> Any:
        if isinstance(prompt, str):
            prompt = Prompt(text=prompt, add_special_tokens=False)
        return [*await super().tokenize(prompt, model=model)][1:]


@tokenizing("test_tokens_become_their_text")
class LosesTheLastToken(ReferenceHybridTokenizer):
    async def detokenize(self, token_ids: Any, *, model: Any = None) -> Any:
        return await super().detokenize(token_ids[:-1] if len(token_ids) > 1 else token_ids, model=model)


@tokenizing("test_unknown_token_ids_have_no_text")
class AnyTokenHasAText(ReferenceHybridTokenizer):
    async def detokenize(self, token_ids: Any, *, model: Any = None) -> Any:
        try:
            return await super().detokenize(token_ids, model=model)
        except InvalidRequest:
            return ""


@tokenizing("test_a_rendered_chat_is_the_prompt_of_chat")
class RendersTheLastMessage(ReferenceHybridTokenizer):
    async def render_chat(self, messages: Any, **more: Any) -> Any:
        return await super().render_chat(messages[-1:], **more)

    async def chat(self, messages: Any, params: Any, model: Any = None, **more: Any) -> Any:
        prompt = await ReferenceHybridTokenizer.render_chat(self, messages, model=model)
        return (await self.generate(prompt, params, model, **more))[0]


@tokenizing("test_the_start_of_the_answer_can_be_left_out")
class AlwaysStartsTheAnswer(ReferenceHybridTokenizer):
    async def render_chat(self, messages: Any, *, add_generation_prompt: bool = True, **more: Any) -> Any:
        return await super().render_chat(messages, **more)


@tokenizing("test_there_is_a_default_model")
class NeedsAName(ReferenceHybridTokenizer):
    async def render_chat(self, messages: Any, *, model: Any = None, **more: Any) -> Any:
        if model is None:
            raise ModelNotFound("name a model")
        return await super().render_chat(messages, model=model, **more)


@tokenizing("test_unknown_models_are_not_found")
class FindsAnyModel(ReferenceHybridTokenizer):
    def tokenizer(self, model: Any) -> Any:
        return super().tokenizer(model if model in self.backends else None)


@tokenizing("test_an_embedding_model_shows_its_own_tokens_or_none")
class ShowsTheOtherModelsTokens(ReferenceHybridTokenizer):
    def tokenizer(self, model: Any) -> Any:
        return super().tokenizer("talker" if model == "embedder" else model)


@tokenizing("test_an_embedding_model_has_no_chats")
class ChatsWithAnyModel(ReferenceHybridTokenizer):
    async def render_chat(self, messages: Any, *, model: Any = None, **more: Any) -> Any:
        return await super().render_chat(messages, model="talker" if model else None, **more)


@tokenizing("test_work_after_close_is_refused")
class TokenizesForEver(ReferenceHybridTokenizer):
    async def close(self) -> None:
        """Goes on."""
