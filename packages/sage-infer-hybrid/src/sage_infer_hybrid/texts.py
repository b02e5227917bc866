"""Tokenization, chat rendering and reading of answers, by the backend of the named model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sage_infer.contracts import (
    AnswerFormat,
    AnswerReading,
    ChatAnswer,
    ChatMessage,
    PromptLike,
    Tokenizing,
)
from sage_infer.errors import UnsupportedFeature
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import Prompt

from sage_infer_hybrid.host import ModelHost
from sage_infer_hybrid.loaded import LoadedModel

__all__ = ["TextOperations"]


class TextOperations:
    """Part of ``HybridBackend``: ``HybridTokenizing``, ``HybridAnswerReading`` and ``HybridToolCalling``."""

    _host: ModelHost

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Render a chat as a prompt with the model's template."""
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            prompt: Prompt = await backend.render_chat(
                messages,
                tools=tools,
                template_variables=template_variables,
                add_generation_prompt=add_generation_prompt,
            )
            return prompt

    async def tokenize(self, prompt: PromptLike, *, model: str | None = None) -> list[int]:
        """The token ids of a prompt, as the model receives it.

        Raises:
            UnsupportedFeature: the model's backend does not claim ``tokenize``.
        """
        loaded = await self._host.ready(model, _types_of(model))
        with self._host.call(loaded) as backend:
            if not isinstance(backend, Tokenizing):
                raise _no_tokens(loaded)
            return await backend.tokenize(prompt)

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of a model's token ids; raises the errors of ``tokenize``."""
        loaded = await self._host.ready(model, _types_of(model))
        with self._host.call(loaded) as backend:
            if not isinstance(backend, Tokenizing):
                raise _no_tokens(loaded)
            return await backend.detokenize(token_ids)

    async def answer_format(self, *, model: str | None = None) -> AnswerFormat | None:
        """The model's format of thoughts and tool calls; None if its backend does not know it."""
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            return await backend.answer_format() if isinstance(backend, AnswerReading) else None

    async def parse_tool_calls(
        self, text: str, *, model: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        """Content and tool calls of a model's answer, by its backend's parser.

        Raises:
            UnsupportedFeature: the model's backend does not claim ``tool_calls``.
        """
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            if "tool_calls" not in loaded.features:
                raise UnsupportedFeature(
                    f"the backend of model {loaded.descriptor.model_id!r} has no tool-call parser"
                )
            answer: ChatAnswer = await backend.parse_tool_calls(text, tools=tools)
            return answer


def _types_of(model: str | None) -> tuple[ModelType, ...]:
    """Types of models for work of any kind: without a name, the default model is one that generates."""
    every: tuple[ModelType, ...] = get_args(ModelType)
    if model is None or model in GENERATING:
        return GENERATING
    return tuple(kind for kind in every if kind == model) or every


def _no_tokens(loaded: LoadedModel) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"the backend of model {loaded.descriptor.model_id!r} does not support tokenize; use another backend"
    )
