"""JSON Schemas of the responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from sage_infer.contracts.hybrid import ModelState
from sage_infer.names import ModelType

__all__ = [
    "ANYTHING", "CHAT_COMPLETION", "EMBEDDINGS", "ERROR", "MODEL", "MODELS", "RERANKED", "STATUS", "STRING", "TEXT",
    "TEXT_COMPLETION", "TOKENS",
]  # fmt: skip

STRING: dict[str, Any] = {"type": "string"}
_TEXT_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number"}
ANYTHING: dict[str, Any] = {"type": "object"}


def _object(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_USAGE = _object(
    {"prompt_tokens": _COUNT, "total_tokens": _COUNT},
    completion_tokens=_COUNT,
    prompt_tokens_details=_object({"cached_tokens": _COUNT}),
    completion_tokens_details=_object({"reasoning_tokens": _COUNT}),
)
_REASON = {"enum": ["stop", "length", "tool_calls"]}
_CALL = _object(
    {
        "id": STRING,
        "type": {"const": "function"},
        "function": _object({"name": STRING, "arguments": STRING}),
    }
)
_TOKEN_LOG = {"token": STRING, "logprob": _NUMBER, "bytes": _list_of({"type": "integer"})}
_CHAT_LOGS = {
    "anyOf": [
        {"type": "null"},
        _object(
            {"content": _list_of(_object({**_TOKEN_LOG, "top_logprobs": _list_of(_object(_TOKEN_LOG))}))}
        ),
    ]
}
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _TEXT_OR_NULL, "refusal": _TEXT_OR_NULL},
    tool_calls=_list_of(_CALL),
    reasoning_content=STRING,
    reasoning=STRING,
)
MODEL = _object(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": STRING,
        "type": {"enum": list(get_args(ModelType))},
        "state": {"enum": list(get_args(ModelState))},
    },
    max_model_len={"type": ["integer", "null"]},
    features={"anyOf": [{"type": "null"}, _list_of(STRING)]},
)
STATUS = _object({"status": STRING, "reason": STRING})
RERANKED = _object(
    {
        "id": STRING,
        "object": {"const": "list"},
        "model": STRING,
        "results": _list_of(
            _object({"index": _COUNT, "relevance_score": _NUMBER}, document=_object({"text": STRING}))
        ),
        "usage": _USAGE,
        "meta": ANYTHING,
    }
)


def _answer(kind: str, choice: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return _object(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": STRING,
            "choices": _list_of(choice),
            "usage": _USAGE,
        },
        system_fingerprint=STRING,
        **optional,
    )


_IDS = _list_of(_COUNT)
CHAT_COMPLETION = _answer(
    "chat.completion",
    _object(
        {"index": _COUNT, "message": _MESSAGE, "logprobs": _CHAT_LOGS, "finish_reason": _REASON},
        token_ids=_IDS,
    ),
    prompt_token_ids=_IDS,
)
TEXT_COMPLETION = _answer(
    "text_completion",
    _object(
        {
            "index": _COUNT,
            "text": STRING,
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": _REASON,
        },
        prompt_token_ids=_IDS,
        token_ids=_IDS,
    ),
)
EMBEDDINGS = _object(
    {
        "object": {"const": "list"},
        "data": _list_of(
            _object(
                {
                    "object": {"const": "embedding"},
                    "index": _COUNT,
                    "embedding": {"anyOf": [_list_of(_NUMBER), STRING]},
                }
            )
        ),
        "model": STRING,
        "usage": _USAGE,
    }
)
TOKENS = _object(
    {"count": _COUNT, "max_model_len": {"type": ["integer", "null"]}, "tokens": _list_of(_COUNT)}
)
TEXT = _object({"prompt": STRING})
MODELS = _object({"object": {"const": "list"}, "data": _list_of(MODEL)})
ERROR = _object(
    {"error": _object({"message": STRING, "type": STRING, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
)
