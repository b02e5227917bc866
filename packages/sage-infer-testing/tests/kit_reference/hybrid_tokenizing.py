"""Two models behind one object, which shows their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import Tokenizing
from sage_infer.errors import EngineDead, UnsupportedFeature
from sage_infer.schemas import Prompt

from kit_reference.hybrid import ReferenceHybrid


class ReferenceHybridTokenizer(ReferenceHybrid):
    """The reference with the methods of ``HybridTokenizing``."""

    def tokenizer(self, model: str | None) -> Any:
        backend = self.find(model, "llm")
        if not isinstance(backend, Tokenizing):
            raise UnsupportedFeature(f"the backend of model {model!r} has no tokenizer")
        return backend

    async def render_chat(
        self, messages: Any, *, model: str | None = None, tools: Any = None, template_variables: Any = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:  # fmt: skip
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        backend = self.find(model, "llm")
        if not hasattr(backend, "render_chat"):
            raise UnsupportedFeature(f"model {model!r} cannot chat")
        prompt: Prompt = await backend.render_chat(
            messages, tools=tools, template_variables=template_variables,
            add_generation_prompt=add_generation_prompt,
        )  # fmt: skip
        return prompt

    async def tokenize(self, prompt: Any, *, model: str | None = None) -> list[int]:
        found: list[int] = await self.tokenizer(model).tokenize(prompt)
        return found

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        text: str = await self.tokenizer(model).detokenize(token_ids)
        return text
