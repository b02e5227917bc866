"""Optional contract of tokenization, for example to count tokens before a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sage_infer.contracts.inference import ChatMessage, PromptLike
from sage_infer.schemas import Prompt

__all__ = ["HybridTokenizing", "TextCodec", "Tokenizing"]


@runtime_checkable
class Tokenizing(Protocol):
    """Additional methods of a backend that claims ``tokenize``."""

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        """Return the token ids that ``generate`` would use for the prompt, including the model's start tokens."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        ...


@runtime_checkable
class TextCodec(Tokenizing, Protocol):
    """A model's tokenizer and chat template without its weights, as returned by ``BackendSpec.tokenizer``."""

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Like ``InferenceBackend.render_chat``."""
        ...


@runtime_checkable
class HybridTokenizing(Protocol):
    """The same methods for an instance with several models.

    Each method raises:
        ModelNotFound: no model has this name.
        UnsupportedFeature: the model's backend is not a ``Tokenizing``.
    """

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Call ``InferenceBackend.render_chat`` of the named model, or of the default model."""
        ...

    async def tokenize(self, prompt: PromptLike, *, model: str | None = None) -> list[int]: ...
    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str: ...
