"""Conversion of the engine's deltas to a chat completion in OpenAI's format."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import define, field
from sage_infer.contracts import AnswerDelta, AnswerReader
from sage_infer.schemas import TokenDelta, ToolCallDelta

from sage_infer_serve.http.sse import ChunkWriter, token_ids_field
from sage_infer_serve.openai.logprobs import chat_logprobs, of_text
from sage_infer_serve.openai.plan import Parse
from sage_infer_serve.openai.schema import ChatRequest

__all__ = ["GrowingAnswer"]

_encode = msgspec.json.encode


@define
class _Call:
    call_id: str
    name: str
    arguments: list[str] = field(factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": "".join(self.arguments)},
        }


@define
class _Choice:
    """One completion."""

    reader: AnswerReader | None
    texts: list[str] = field(factory=list)
    thoughts: list[str] = field(factory=list)
    calls: list[_Call] = field(factory=list)
    logs: list[Any] = field(factory=list)
    token_ids: list[int] = field(factory=list)
    reason: str | None = None

    @property
    def finish_reason(self) -> str:
        reason = self.reason or "stop"
        return "tool_calls" if self.calls and reason == "stop" else reason


class GrowingAnswer:
    """Text, thoughts, calls, log probabilities and finish reason per completion.

    Args:
        readers: one per completion; None if all text is content.
        parse: a backend's own parser, which requires the whole text: content and calls then arrive at the end.
        is_single: deliver only the first call.
        prompt_token_ids: the prompt, if the answer has token ids.

    Attributes:
        is_plain: whether text is content unchanged.
        reasoning_tokens: tokens of thoughts so far, including their marks.
    """

    def __init__(
        self,
        request: ChatRequest,
        request_id: str,
        model: str,
        *,
        readers: Sequence[AnswerReader | None],
        parse: Parse | None,
        is_single: bool,
        fingerprint: str,
        prompt_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.id = "chatcmpl-" + request_id
        self.created = int(time.time())
        self.model = model
        self.fingerprint = fingerprint
        self.include_usage = request.stream_options is not None and request.stream_options.include_usage
        self.reasoning_tokens = 0
        self._parse = parse
        self._is_single = is_single
        self._logprobs = bool(request.logprobs)
        self._is_streamed = bool(request.stream)
        self._with_thoughts = request.include_reasoning is not False
        self._choices = [_Choice(reader) for reader in readers]
        self._prompt_ids = prompt_token_ids
        is_text = parse is None and all(reader is None for reader in readers)
        # Ids of thoughts would show thoughts that the client does not want, as in vLLM.
        self._with_ids = bool(request.return_token_ids) and (self._with_thoughts or is_text)
        self.is_plain = is_text and not self._logprobs and not self._with_ids

    @property
    def prompt_ids(self) -> bytes:
        """Field of the first chunk with the token ids of the prompt; empty without them."""
        return b"" if self._prompt_ids is None else token_ids_field("prompt_token_ids", self._prompt_ids)

    # --- input

    async def take(self, delta: TokenDelta) -> tuple[AnswerDelta, list[dict[str, Any]], list[dict[str, Any]]]:
        """Add a delta; returns its content and reasoning, its calls as fragments, and its log probabilities."""
        choice = self._choices[delta.index]
        brought = await self._read(choice, delta)
        is_over = self._is_single and bool(choice.calls)
        fragments = [f for call in brought.tool_calls if (f := self._add(choice, delta.index, call))]
        brought = AnswerDelta(  # text after a single call belongs to further calls
            content="" if is_over else brought.content,
            reasoning=brought.reasoning if self._with_thoughts else "",
        )
        choice.texts.append(brought.content)
        choice.thoughts.append(brought.reasoning)
        new = chat_logprobs(of_text(delta)) if self._logprobs else []
        if not self._is_streamed:
            choice.logs += new
        choice.token_ids += delta.token_ids
        if delta.finish_reason is not None:
            choice.reason = delta.finish_reason
        return brought, fragments, new

    async def _read(self, choice: _Choice, delta: TokenDelta) -> AnswerDelta:
        """The parts of a delta, separated by the backend or by the reader of its text."""
        reader = choice.reader
        found = [AnswerDelta(content=delta.text)]
        if delta.reasoning:
            self.reasoning_tokens += len(delta.token_ids)
        if self._parse is not None:
            choice.texts.append(delta.text)
            found = []
            if delta.finish_reason is not None:
                answer = await self._parse("".join(choice.texts))
                choice.texts.clear()
                calls = enumerate(answer.tool_calls)
                found = [
                    AnswerDelta(
                        content=answer.content,
                        tool_calls=tuple(
                            ToolCallDelta(index=i, name=call.name, arguments=call.arguments)
                            for i, call in calls
                        ),
                    )
                ]
        elif reader is not None:
            was_reasoning = reader.is_reasoning
            found = [reader.feed(delta.text)]
            if was_reasoning or reader.is_reasoning:
                self.reasoning_tokens += len(delta.token_ids)
            if delta.finish_reason is not None:
                found.append(reader.end())
        return AnswerDelta(
            content="".join(part.content for part in found),
            reasoning=delta.reasoning + "".join(part.reasoning for part in found),
            tool_calls=delta.tool_calls + tuple(call for part in found for call in part.tool_calls),
        )

    def _add(self, choice: _Choice, index: int, delta: ToolCallDelta) -> dict[str, Any] | None:
        """A call's fragment for the stream; None if the call is dropped."""
        calls = choice.calls
        if self._is_single and delta.index > 0:
            return None
        arguments = _utf8(delta.arguments)
        function = {"arguments": arguments}
        fragment: dict[str, Any] = {"index": delta.index, "function": function}
        if delta.index == len(calls):
            call = _Call(call_id=f"call_{self.id}_{index}_{delta.index}", name=_utf8(delta.name))
            calls.append(call)
            fragment = {
                "index": delta.index,
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, **function},
            }
        calls[delta.index].arguments.append(arguments)
        return fragment

    def finished(self, delta: TokenDelta) -> None:
        """Add the end of a plain answer."""
        self._choices[delta.index].reason = delta.finish_reason

    def reason_of(self, index: int) -> str:
        return self._choices[index].finish_reason

    def reasons(self) -> list[str]:
        return [choice.finish_reason for choice in self._choices]

    # --- output

    async def chunks(self, writer: ChunkWriter, delta: TokenDelta) -> list[bytes]:
        """Chunks of an answer that is not plain."""
        index = delta.index
        brought, fragments, new = await self.take(delta)
        logs = {"content": new, "refusal": None} if new else None
        parts: list[tuple[dict[str, Any], Any]] = []
        if brought.reasoning:
            parts.append((_thoughts(brought.reasoning), None))
        if brought.content or logs:
            parts.append(({"content": brought.content}, logs))
        if fragments:
            parts.append(({"tool_calls": fragments}, None))
        # The last chunk of a delta has its token ids and finish reason: a client with the ids has the text as well.
        last: tuple[dict[str, Any], Any] | None = None
        if self._with_ids:
            last = parts.pop() if parts else ({}, None)
        chunks = [writer.delta(index, _encode(part), logprobs=_encode(log)) for part, log in parts]
        reason = None if delta.finish_reason is None else self.reason_of(index)
        if last is not None:
            more = token_ids_field("token_ids", delta.token_ids)
            chunks.append(
                writer.delta(index, _encode(last[0]), logprobs=_encode(last[1]), reason=reason, more=more)
            )
        elif reason is not None:
            chunks.append(writer.finish(index, reason))
        return chunks

    def body(self, usage: Mapping[str, Any]) -> bytes:
        return _encode(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [self._choice(index) for index in range(len(self._choices))],
                "usage": usage,
                "system_fingerprint": self.fingerprint,
            }
            | ({} if self._prompt_ids is None else {"prompt_token_ids": self._prompt_ids})
        )

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        text, thoughts = "".join(choice.texts), "".join(choice.thoughts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or None if choice.calls or thoughts else text,
            "refusal": None,
        }
        if thoughts:
            message |= _thoughts(thoughts)
        if choice.calls:
            message["tool_calls"] = [call.as_dict() for call in choice.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": choice.logs, "refusal": None} if self._logprobs else None,
            "finish_reason": choice.finish_reason,
        } | ({"token_ids": choice.token_ids} if self._with_ids else {})


def _thoughts(text: str) -> dict[str, str]:
    """Thoughts under the common name of the field, and under vLLM's newer one."""
    return {"reasoning_content": text, "reasoning": text}


def _utf8(text: str) -> str:
    """The text with lone surrogates escaped, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()
