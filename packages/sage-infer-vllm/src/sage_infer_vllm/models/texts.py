"""A model's tokenizer and chat template without a started engine (``BackendSpec.tokenizer``)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from sage_infer.contracts import ChatMessage, PromptLike, as_prompts
from sage_infer.errors import ModelFileError
from sage_infer.models import inspect_model
from sage_infer.schemas import ModelDescriptor, Prompt
from sage_infer.sdk import check_claims

from sage_infer_vllm.requests.chat import ChatRenderer, chat_renderer, render_chat
from sage_infer_vllm.requests.prompts import text_of, tokens_of

__all__ = ["ModelTexts", "open_texts"]


@frozen
class ModelTexts:
    """Texts and token ids of one model; a ``TextCodec`` with the answers of a started backend."""

    tokenizer: Any
    vocab_size: int
    chats: ChatRenderer | None

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        return await asyncio.to_thread(
            render_chat,
            self.chats,
            messages,
            tools=tools,
            template_variables=template_variables,
            add_generation_prompt=add_generation_prompt,
        )

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        given = as_prompts(prompt)
        check_claims((), backend="vllm", prompts=given)
        return await tokens_of(self.tokenizer, given[0], "the prompt", vocab_size=self.vocab_size)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return text_of(self.tokenizer, token_ids, vocab_size=self.vocab_size)


def open_texts(model: ModelDescriptor) -> ModelTexts:
    """The tokenizer of a GGUF file or a Hugging Face folder; reads no weights and starts no engine.

    Raises:
        ModelNotFound, ModelFileError: there is no model, or its tokenizer, chat template or configuration cannot be
            read.
        UnsupportedFeature: a GGUF file of an architecture or a tokenizer that cannot be converted.
    """
    path = Path(model.model_path).expanduser()
    if not path.exists():
        raise ModelFileError(
            f"{path}: no such file or folder; expected a Hugging Face folder or a .gguf file"
        )
    source = inspect_model(path).path
    if source.is_file():
        from sage_infer_vllm.models.gguf_folder import read_config, read_tokenizer

        config, tokenizer = read_config(source), read_tokenizer(source)
    else:
        from transformers import AutoConfig, AutoTokenizer

        try:
            config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelFileError(
                f"{source}: the tokenizer or the configuration cannot be read ({what}); download the model again"
            ) from error
    return ModelTexts(tokenizer, int(config.get_text_config().vocab_size), chat_renderer(tokenizer))
