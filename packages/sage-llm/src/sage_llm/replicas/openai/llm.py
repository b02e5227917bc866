"""Text generation on an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sage_infer.contracts import (
    ChatMessage,
    DecodeResult,
    PrefillResult,
    PromptLike,
    TokenStream,
    as_prompts,
)
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, SageInferError, UnsupportedFeature
from sage_infer.schemas import (
    DecodeState,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
)
from sage_infer.sdk import check_claims

from sage_llm.replicas.openai.base import ServerBackend
from sage_llm.replicas.openai.completion import Completion, MakeBody
from sage_llm.replicas.openai.fields import features_of, sampling_fields

__all__ = ["OpenAIReplica"]

_TRIES, _LONGEST_WAIT_S = 10, 3.0  # of the probe
_STREAM: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class OpenAIReplica(ServerBackend):
    """A model on a server with OpenAI's completion API: vLLM, ``sage infer serve``, and others.

    Prompts go to ``/v1/completions``, chats to ``/v1/chat/completions``. Only a server with ``/tokenize`` renders
    chats; without it, ``chat`` is not claimed. Deltas have ``token_ids`` only if the server returns them: ``start``
    asks vLLM and ``sage infer serve`` for one token to see. ``resume`` is claimed only if ``sage infer serve`` lists it
    among the model's features; whether other servers continue exactly is unknown.

    The arguments are those of ``ServerBackend``.
    """

    _tokenizes = _returns_ids = _resumes = False

    async def prepare(self, row: Mapping[str, Any]) -> None:
        tokens = [1]  # of a prompt for the probe, where the server has no tokenizer
        try:
            answer = await self.server.post("/tokenize", {"model": self.model.model_id, "prompt": "a"})
            if isinstance(answer, dict) and "tokens" in answer:  # some servers answer every path
                self._tokenizes, tokens = True, answer["tokens"]
        except SageInferError as error:
            if isinstance(error, EngineDead):
                raise
        if self.dialect != "openai":
            self._returns_ids = await self._probe(tokens)
        self._resumes = self._returns_ids and "resume" in (row.get("features") or ())

    async def _probe(self, tokens: list[int]) -> bool:
        """Whether the server returns the ids of a prompt and of its output."""
        body = {
            "model": self.model.model_id, "prompt": tokens, "max_tokens": 1, "temperature": 0,
            "return_token_ids": True,
        }  # fmt: skip
        try:
            (choice,) = (await self._post_patiently("/v1/completions", body))["choices"]
        except (EngineDead, Overloaded):
            raise  # it is connected again later, as what it returns is unknown
        except (SageInferError, KeyError, TypeError, ValueError):
            return False
        return choice.get("prompt_token_ids") == tokens and isinstance(choice.get("token_ids"), list)

    async def _post_patiently(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer of a server that may be busy for a while."""
        for _ in range(_TRIES - 1):
            try:
                return await self.server.post(path, body)
            except Overloaded as busy:
                await asyncio.sleep(min(busy.retry_after, _LONGEST_WAIT_S))
        return await self.server.post(path, body)

    def features(self) -> tuple[str, ...]:
        return features_of(self.dialect, tokenizes=self._tokenizes, resumes=self._resumes)

    # --- generation

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        """Start generation. Returns when the server has accepted all prompts, which for some is the first token."""
        self.check_running()
        several = as_prompts(prompts)
        check_claims(self.features(), backend=self.name, params=params, options=options, prompts=several)
        if not several:
            raise InvalidRequest("no prompts were given")
        fields = self._fields(params, options)
        makers = [self._body_of(prompt, params, fields) for prompt in several]
        return await self._completions("/v1/completions", makers, request_id, options)

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        """Start a chat that the server renders and whose answer it parses.

        Deltas have ``reasoning`` and ``tool_calls`` as the server has found them.

        Raises:
            UnsupportedFeature: a field is set that the server does not know.
        """
        self.check_running()
        check_claims(self.features(), backend=self.name, params=params, options=options)
        if not messages:
            raise InvalidRequest("messages must not be empty")
        if template_variables and self.dialect == "openai":
            raise UnsupportedFeature(
                f"OpenAI's API has no variables of chat templates ({', '.join(template_variables)}); leave them out"
            )
        body: dict[str, Any] = {"messages": list(messages), **self._fields(params, options)}
        if self._returns_ids:
            body["return_token_ids"] = True
        if tools:
            body["tools"] = list(tools)
        if template_variables:
            body["chat_template_kwargs"] = dict(template_variables)
        if params.max_tokens is not None:
            body["max_tokens"] = params.max_tokens

        async def make() -> dict[str, Any]:
            return {"model": self.model.model_id, **_STREAM, **body}

        (stream,) = await self._completions("/v1/chat/completions", [make], request_id, options)
        return stream

    @property
    def passes_chats(self) -> bool:
        """Whether ``chat`` loses nothing against a rendered prompt."""
        return self.dialect != "vllm" or not self._tokenizes

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        self.check_running()
        if not self._resumes:
            raise UnsupportedFeature(f"{self.server.url} does not continue outputs; send the request again")
        if len(states) != 1 or states[0].params.n != 1:
            raise UnsupportedFeature(
                "servers continue requests with one completion only; send the request again"
            )
        (state,) = states
        check_claims(self.features(), backend=self.name, params=state.params, options=options)
        params, prompt = state.params, Prompt(token_ids=state.prompt_token_ids)
        if not state.output_token_ids:
            (stream,) = await self.generate([prompt], params, request_id=request_id, options=options)
            return stream
        given = {"token_ids": list(state.output_token_ids), "delivered_chars": state.delivered_chars}
        fields = {**self._fields(params, options), "continue_from": given}
        (stream,) = await self._completions(
            "/v1/completions", [self._body_of(prompt, params, fields)], request_id, options
        )
        return stream

    def _fields(self, params: SamplingParams, options: RequestOptions | None) -> dict[str, Any]:
        fields = sampling_fields(params, self.dialect)
        if options is not None and options.priority:
            fields["priority"] = options.priority
        return fields

    def _body_of(self, prompt: Prompt, params: SamplingParams, fields: Mapping[str, Any]) -> MakeBody:
        return lambda: self.body(prompt, params, fields)

    async def _completions(
        self,
        path: str,
        makers: Sequence[MakeBody],
        request_id: str | None,
        options: RequestOptions | None,
    ) -> list[TokenStream]:
        requests = self.requests.accept(request_id, len(makers), options=options)
        calls = [
            Completion(self, request, path, make, options)
            for request, make in zip(requests, makers, strict=True)
        ]
        try:
            for call in calls:
                await call.accepted
        except BaseException:
            for call in calls:
                call.stream.cancel()
            raise
        return [call.stream for call in calls]

    async def body(self, prompt: Prompt, params: SamplingParams, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a completion request."""
        content: str | list[int] = list(prompt.token_ids or ())
        if not content:
            content = prompt.text or ""
        if isinstance(content, str) and (not prompt.add_special_tokens or params.max_tokens is None):
            if not self._tokenizes:
                raise UnsupportedFeature(
                    f"{self.server.url} has no /tokenize, so max_tokens must be set, and prompts are text with "
                    "special tokens, or token ids"
                )
            content = await self.tokenize(prompt)
        body: dict[str, Any] = {"model": self.model.model_id, "prompt": content, **_STREAM, **fields}
        most = params.max_tokens
        if most is None and self.max_length is not None:
            most = max(1, self.max_length - len(content))
        if most is not None:
            body["max_tokens"] = most
        if self._returns_ids:
            body["return_token_ids"] = True
        return body

    # --- tokens and chats

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        self._needs_tokenize()
        (one,) = as_prompts(prompt)
        if one.token_ids is not None:
            return list(one.token_ids)
        request = {"prompt": one.text, "add_special_tokens": one.add_special_tokens}
        return await self._tokens(request)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        self._needs_tokenize()
        body = {"model": self.model.model_id, "tokens": list(token_ids)}
        return cast(str, (await self.server.post("/detokenize", body))["prompt"])

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        self._needs_tokenize()
        if not messages:
            raise InvalidRequest("messages must not be empty")
        request: dict[str, Any] = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        if tools is not None:
            request["tools"] = list(tools)
        if template_variables:
            request["chat_template_kwargs"] = dict(template_variables)
        return Prompt(token_ids=tuple(await self._tokens(request)))

    async def _tokens(self, request: Mapping[str, Any]) -> list[int]:
        answer = await self.server.post("/tokenize", {"model": self.model.model_id, **request})
        return cast(list[int], answer["tokens"])

    def _needs_tokenize(self) -> None:
        self.check_running()
        if not self._tokenizes:
            raise UnsupportedFeature(f"{self.server.url} has no /tokenize; send text to generate instead")

    # --- what the API does not have

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        raise UnsupportedFeature("OpenAI's API has no separate prefill; use generate")

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        raise UnsupportedFeature("OpenAI's API has no separate decode; use generate")

    def get_kv_schema(self) -> KVCacheSchema:
        raise UnsupportedFeature("OpenAI's API does not describe a KV cache")

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        raise UnsupportedFeature("the server's model is already loaded; quantize it there")
