"""Tokenizer, chat template and answer format of a model: in this process if possible, else of its instances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from sage_infer.backends import list_backends
from sage_infer.contracts import (
    AnswerFormat,
    AnswerReading,
    ChatAnswer,
    ChatMessage,
    PromptLike,
    TextCodec,
    Tokenizing,
    as_prompts,
)
from sage_infer.errors import UnsupportedFeature
from sage_infer.factories import call_path
from sage_infer.schemas import ModelDescriptor, Prompt

from sage_llm.manager.calls.questions import BatchCalls

__all__ = ["ModelTexts"]

T = TypeVar("T")


class ModelTexts:
    """Texts of one model.

    Args:
        calls: runs a call on one of the model's instances, where the tokenizer needs the engine.
    """

    def __init__(self, model: ModelDescriptor, backend: str, calls: BatchCalls) -> None:
        self._model, self._backend, self._calls = model, backend, calls
        self._codec: TextCodec | None = None
        self._format: tuple[int, AnswerFormat | None] | None = None  # for which instances, and the format

    @property
    def is_local(self) -> bool:
        """Whether this process has the tokenizer."""
        return self._codec is not None

    async def load(self) -> None:
        """Load the tokenizer in this process, if the backend can without the model's weights."""
        info = next((row for row in list_backends() if row.name == self._backend), None)
        path = None if info is None or info.spec is None else info.spec.tokenizer
        if info is not None and path is not None:
            self._codec = await asyncio.to_thread(call_path, path, what=info.title, model=self._model)
            self._format = None

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        template_variables: Mapping[str, Any] | None,
        add_generation_prompt: bool,
    ) -> Prompt:
        return await self._on_either(
            lambda backend: backend.render_chat(
                messages,
                tools=tools,
                template_variables=template_variables,
                add_generation_prompt=add_generation_prompt,
            )
        )

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        return await self._on_either(lambda backend: _tokenizing(backend, self._model).tokenize(prompt))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._on_either(lambda backend: _tokenizing(backend, self._model).detokenize(token_ids))

    async def prompt(self, prompt: PromptLike) -> Prompt:
        """The prompt as token ids; unchanged if they cannot be known without changing what the engine computes."""
        (one,) = as_prompts(prompt)
        if one.token_ids is not None or one.media:
            return one
        try:
            ids = await self.tokenize(one)
        except UnsupportedFeature:
            return one
        return Prompt(token_ids=tuple(ids)) if ids else one

    async def answer_format(self) -> AnswerFormat | None:
        """The format of the model's answers; asked once for the same instances."""
        version = self._calls.version
        if self._format is None or self._format[0] != version:
            self._format = version, await self._find_format()
        return self._format[1]

    async def _find_format(self) -> AnswerFormat | None:
        codec: object = self._codec
        if isinstance(codec, AnswerReading):
            return await codec.answer_format()

        async def read(backend: Any) -> AnswerFormat | None:
            return await backend.answer_format() if isinstance(backend, AnswerReading) else None

        return await self._calls.run(self._model.model_id, read)

    async def parse_tool_calls(self, text: str, tools: Sequence[Mapping[str, Any]] | None) -> ChatAnswer:
        async def parse(backend: Any) -> ChatAnswer:
            if not backend.get_capability().supports("tool_calls"):
                raise UnsupportedFeature(
                    f"the backend of model {self._model.model_id!r} has no tool-call parser"
                )
            answer: ChatAnswer = await backend.parse_tool_calls(text, tools=tools)
            return answer

        return await self._calls.run(self._model.model_id, parse)

    async def _on_either(self, call: Callable[[Any], Awaitable[T]]) -> T:
        if self._codec is not None:
            return await call(self._codec)
        return await self._calls.run(self._model.model_id, call)


def _tokenizing(backend: Any, model: ModelDescriptor) -> Tokenizing:
    if isinstance(backend, Tokenizing):
        return backend
    raise UnsupportedFeature(
        f"the backend of model {model.model_id!r} does not support tokenize; use another backend"
    )
