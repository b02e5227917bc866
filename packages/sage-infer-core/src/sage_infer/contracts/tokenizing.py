"""The contract of showing a model's tokens, for counting before asking. Optional: some engines hide
theirs.
"""

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
        """The token ids that ``generate`` would compute for the prompt, the model's start tokens included."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        ...


@runtime_checkable
class TextCodec(Tokenizing, Protocol):
    """A model's tokenizer and chat template without its weights: the factory ``BackendSpec.tokenizer``
    returns one.
    """

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """``InferenceBackend.render_chat``."""
        ...


@runtime_checkable
class HybridTokenizing(Protocol):
    """The same methods of an instance with several models.

    Raises, in every call:
        ModelNotFound: there is no such model.
        UnsupportedFeature: the model's backend is no ``Tokenizing``.
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
        """``InferenceBackend.render_chat`` of the named model, or of the default one."""
        ...

    async def tokenize(self, prompt: PromptLike, *, model: str | None = None) -> list[int]: ...
    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str: ...
