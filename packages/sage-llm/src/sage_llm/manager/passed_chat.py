"""Chats that are passed on as they are, to instances that render them themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
from attrs import frozen
from sage_infer.contracts import ChatMessage, TokenStream
from sage_infer.schemas import Prompt, RequestOptions, SamplingParams

from sage_llm.manager.live_instance import LiveInstance

__all__ = ["PassedChat", "pass_chats"]


@frozen(kw_only=True)
class PassedChat:
    """The chat of a request whose tokens are unknown here."""

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]] | None
    template_variables: Mapping[str, Any] | None

    @property
    def prompt(self) -> Prompt:
        """Text of about the length of the rendered chat; no instance receives it."""
        return Prompt(text=msgspec.json.encode([self.messages, self.tools]).decode())

    async def open(
        self, backend: Any, params: SamplingParams, request_id: str, options: RequestOptions
    ) -> TokenStream:
        """Start it on an instance."""
        stream = await backend.chat(
            self.messages,
            params,
            tools=self.tools,
            template_variables=self.template_variables,
            request_id=request_id,
            options=options,
        )
        return cast(TokenStream, stream)


def pass_chats(instances: Iterable[LiveInstance]) -> bool:
    """Whether all instances render chats themselves, and none returns the token ids that a migration needs."""
    found = [bool(getattr(instance.backend, "passes_chats", False)) for instance in instances]
    return bool(found) and all(found)
