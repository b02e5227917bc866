"""Requests in OpenAI's format (https://platform.openai.com/docs/api-reference), with common extensions.

``msgspec`` validates them while decoding; the same classes define the schemas of the OpenAPI document. Unknown fields
have no effect: a response header names them, and strict mode rejects them, except those in ``IGNORED``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from sage_infer_serve.http.errors import HTTPError, wrong_request

__all__ = [
    "ChatRequest", "CompletionRequest", "ContinueFrom", "DetokenizeRequest", "EmbeddingRequest", "Message",
    "RerankRequest", "ResponseFormat", "Sampling", "StreamOptions", "TokenizeRequest", "Tool", "decode",
]  # fmt: skip

# Limits on numbers of items: without them, a body of a few megabytes could cost minutes of work.
_MESSAGES, _PARTS, _CALLS, _TOOLS = 4096, 1024, 256, 1024

Name = Annotated[str, Meta(min_length=1)]
ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_TOKENS = 4_194_304  # per text; more than any model's context
Tokens = Annotated[list[TokenId], Meta(min_length=1, max_length=_TOKENS)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
JsonObject = dict[str, Any]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Function(Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Struct):
    type: Literal["function"]
    function: Function


class FunctionName(Struct):
    name: ModelName


class NamedTool(Struct):
    type: Literal["function"]
    function: FunctionName


class CalledFunction(Struct):
    name: ModelName
    arguments: str


class Called(Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ContentPart(Struct):
    """A part of a message. Texts are joined; other parts are passed to multimodal models unchanged."""

    type: Literal["text", "refusal", "image_url", "input_audio", "video_url", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: JsonObject | None = None
    input_audio: JsonObject | None = None
    video_url: JsonObject | None = None
    file: JsonObject | None = None


class Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Meta(max_length=_PARTS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Called], Meta(max_length=_CALLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class StreamOptions(Struct):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """``schema`` is an extension: the JSON Schema of an object, or of the answer, named as in llama.cpp."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: JsonObject | None = None


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True):
    """A constraint in the format of vLLM ≥ 0.12; the ``guided_`` fields are its older format."""

    json: JsonObject | Name | None = None
    regex: Name | None = None
    choice: Annotated[list[Name], Meta(min_length=1)] | None = None
    grammar: Name | None = None
    json_object: bool | None = None


class Sampling(Struct, kw_only=True):
    """Common fields of chat and completions. ``top_k`` to ``priority`` and ``cache_salt`` are
    extensions, named as in vLLM. Without ``model`` the default model answers.
    """

    model: ModelName | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    bad_words: Annotated[list[str], Meta(max_length=4096)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(max_length=_TOKENS)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=4096)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonObject | Name | None = None
    guided_regex: Name | None = None
    guided_grammar: Name | None = None
    guided_choice: Annotated[list[Name], Meta(min_length=1)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    service_tier: Name | None = None
    prompt_cache_key: str | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    return_token_ids: bool | None = None


class ChatRequest(Sampling, kw_only=True):
    """``chat_template_kwargs`` to ``continue_final_message`` configure the chat template. All of them except
    ``reasoning_effort`` are extensions, named as in vLLM.
    """

    messages: Annotated[list[Message], Meta(min_length=1, max_length=_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    functions: Annotated[list[JsonObject], Meta(max_length=_TOOLS)] | None = None
    function_call: str | JsonObject | None = None
    chat_template_kwargs: JsonObject | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ContinueFrom(Struct, kw_only=True, forbid_unknown_fields=True):
    """Output of a completion that another server began: its tokens, and the characters of their text that the
    client has received.
    """

    token_ids: Tokens
    delivered_chars: Annotated[int, Meta(ge=0)]


class CompletionRequest(Sampling, kw_only=True):
    """``continue_from`` is an extension: the answer starts after this output, as if it had not been interrupted."""

    continue_from: ContinueFrom | None = None
    prompt: str | Annotated[list[str | TokenId | Tokens], Meta(min_length=1, max_length=_TOKENS)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    suffix: str | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """``truncate`` is an extension: truncate long texts, named as in Jina's API."""

    model: ModelName | None = None
    input: str | Annotated[list[str | TokenId | Tokens], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    truncate: bool | None = None


class Document(Struct):
    text: Name


class RerankRequest(Struct, kw_only=True):
    """Jina's format (https://api.jina.ai/redoc#tag/rerank), a superset of Cohere's second version."""

    model: ModelName | None = None
    query: Name
    documents: Annotated[list[Name | Document], Meta(min_length=1, max_length=10_000)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    """vLLM's format: a prompt or a chat."""

    model: ModelName | None = None
    prompt: Name | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=_TOOLS)] | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: JsonObject | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: ModelName | None = None
    tokens: Tokens


IGNORED = frozenset(
    {
        "metadata", "store", "prediction", "audio", "web_search_options", "verbosity",
        "prompt_cache_retention", "safety_identifier", "moderation",
    }
)  # fmt: skip
"""OpenAI fields without meaning for a self-hosted engine; strict mode accepts them too, and names them as ignored."""

T = TypeVar("T", bound=Struct)

_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_MISSING = re.compile(r"Object missing required field `(.+)`")


class Decoder:
    """Reads one kind of request, with ``fields``; ``strict`` rejects unknown ones by name."""

    def __init__(self, kind: type[Struct], strict: bool) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._strict = strict
        self._kind = kind
        self.fields = frozenset(f.encode_name for f in msgspec.structs.fields(kind))
        self._known = self.fields - {"user"}

    def __call__(self, body: bytes) -> Any:
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `")
            param = path.rstrip("`").removeprefix("$").removeprefix(".") or None
            if missing := _MISSING.fullmatch(message):  # reported at the missing field, not at its parent
                param = f"{param}.{missing[1]}" if param else missing[1]
                raise wrong_request(f"{param} is missing", param) from None
            where = f"{param}: " if param else ""
            raise wrong_request(f"{where}{_readable(message)}", param) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise wrong_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise wrong_request("the body is nested too deeply", code="invalid_json") from None
        if self._strict:
            self._refuse_unknown(body)
        return request

    def ignored_fields(self, body: bytes) -> list[str]:
        """Top-level fields of a valid body that have no effect, in their order, without null fields."""
        fields = _top_level(body)
        return [n for n, value in fields.items() if n not in self._known and bytes(value) != b"null"]

    def _refuse_unknown(self, body: bytes) -> None:
        for path in unknown_fields(msgspec.json.decode(body), self._kind):
            raise wrong_request(
                f"{path} is not a field of this request; remove it", path, code="unknown_field"
            )


def decode(kind: type[T], body: bytes, *, strict: bool = False) -> T:
    """A validated request.

    Raises:
        HTTPError: it is not JSON, or a field is invalid; the message names its location.
    """
    request: T = Decoder(kind, strict)(body)
    return request


def unknown_fields(data: Any, kind: Any, path: str = "") -> list[str]:
    """Locations of fields unknown to ``kind`` and ``IGNORED``."""
    found: list[str] = []
    for struct in _structs(kind):
        if isinstance(data, dict):
            known = {f.encode_name: f.type for f in msgspec.structs.fields(struct)}
            for name, value in data.items():
                here = f"{path}.{name}" if path else name
                if name in known:
                    found += unknown_fields(value, known[name], here)
                elif path or name not in IGNORED:
                    found.append(here)
        elif isinstance(data, list):
            for index, value in enumerate(data):
                found += unknown_fields(value, struct, f"{path}[{index}]")
    return found


def _structs(kind: Any) -> list[type[Struct]]:
    """The structs in a type; a request has at most one at each location."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    origin = getattr(kind, "__origin__", None)
    if origin is dict:
        return []
    return [s for inner in getattr(kind, "__args__", ()) for s in _structs(inner)]


def _readable(message: str) -> str:
    """``msgspec``'s message in our wording: expected and found."""
    return message[:1].lower() + message[1:]


def refused(feature: str, param: str) -> HTTPError:
    """The error for OpenAI features that no engine supports. They are rejected, never ignored."""
    return wrong_request(f"{feature}; remove it", param, code="unsupported_feature")
