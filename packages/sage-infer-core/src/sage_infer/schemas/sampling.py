"""Sampling parameters, stop conditions and output constraints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from sage_infer.checks import (
    Each,
    Flag,
    Instance,
    Integer,
    JsonWithin,
    Number,
    Text,
    as_optional_tuple,
    as_tuple,
    optional,
)
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema

__all__ = ["GuidedDecoding", "SamplingParams"]

_SCHEMA_VALUES, _SCHEMA_DEPTH, _SCHEMA_CHARACTERS = 20_000, 64, 262_144
_REGEX_CHARACTERS = 16_384
_GRAMMAR_CHARACTERS = 131_072
_CHOICES, _CHOICE_CHARACTERS = 4_096, 16_384
_STOPS, _STOP_CHARACTERS, _STOP_IDS = 64, 1_024, 4_096


@schema("1.0")
@frozen(kw_only=True)
class GuidedDecoding:
    """A constraint on the output. Exactly one field must be set.

    The size of each constraint is limited, because even a short text can take an engine minutes to compile.

    Attributes:
        json_schema: the output is JSON valid against this JSON Schema.
        regex: the whole output matches this regular expression.
        grammar: the output follows this grammar (Lark or GBNF; see the backend's README).
        choice: the output is one of these strings.
    """

    json_schema: Mapping[str, Any] | None = field(
        default=None, validator=optional(JsonWithin(_SCHEMA_VALUES, _SCHEMA_DEPTH, _SCHEMA_CHARACTERS))
    )
    regex: str | None = field(
        default=None, validator=optional(Text(min_length=1, max_length=_REGEX_CHARACTERS))
    )
    grammar: str | None = field(
        default=None, validator=optional(Text(min_length=1, max_length=_GRAMMAR_CHARACTERS))
    )
    choice: tuple[str, ...] | None = field(
        default=None,
        converter=as_optional_tuple,
        validator=optional(
            Each(
                Text(min_length=1, max_length=_CHOICE_CHARACTERS),
                min_items=1,
                unique=True,
                max_items=_CHOICES,
            )
        ),
    )

    def __attrs_post_init__(self) -> None:
        given = [n for n in ("json_schema", "regex", "grammar", "choice") if getattr(self, n) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            message = f"exactly one of json_schema, regex, grammar, choice must be set, got {found}"
            raise SchemaError("GuidedDecoding", [Problem("$", message)])
        characters = sum(map(len, self.choice or ()))
        if characters > _GRAMMAR_CHARACTERS:
            message = f"must have at most {_GRAMMAR_CHARACTERS} characters in total, got {characters}"
            raise SchemaError("GuidedDecoding", [Problem("$.choice", message)])


@schema("1.0")
@frozen(kw_only=True)
class SamplingParams:
    """Sampling parameters of one request. A backend refuses unsupported values (``UnsupportedFeature``).

    Attributes:
        temperature: sampling temperature; 0 is greedy, higher values are more random.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least this.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: drop tokens whose probability is below this fraction of the most likely token's.
        repetition_penalty: factor that lowers the logits of tokens in the prompt or output; 1 disables it.
        presence_penalty: subtracted once from the logit of each token that occurs in the output.
        frequency_penalty: subtracted from the logit of a token once per occurrence in the output.
        seed: makes sampling reproducible on one backend; null draws a random seed.
        n: number of completions per prompt; each delta has the index of its completion.
        max_tokens: maximum output length in tokens; null means up to the sequence limit.
        min_tokens: minimum output length in tokens; end-of-sequence tokens and stops are ignored before it.
        stop: strings that end the output; the output does not contain them.
        stop_token_ids: token ids that end the output.
        ignore_eos: continue past the model's end-of-sequence token (for benchmarks).
        skip_special_tokens: leave special tokens out of the text.
        logprobs: number of alternatives to report with the log probability of each sampled token; null reports
            no log probabilities.
        guided: constraint on the output.
        adapter: name of the LoRA adapter to use.
    """

    temperature: float = field(default=1.0, validator=Number(ge=0, le=100))
    top_p: float = field(default=1.0, validator=Number(gt=0, le=1))
    top_k: int = field(default=0, validator=Integer(ge=0))
    min_p: float = field(default=0.0, validator=Number(ge=0, le=1))
    repetition_penalty: float = field(default=1.0, validator=Number(gt=0, le=10))
    presence_penalty: float = field(default=0.0, validator=Number(ge=-2, le=2))
    frequency_penalty: float = field(default=0.0, validator=Number(ge=-2, le=2))
    seed: int | None = field(default=None, validator=optional(Integer(ge=0, le=2**63 - 1)))
    n: int = field(default=1, validator=Integer(ge=1, le=1024))
    max_tokens: int | None = field(default=None, validator=optional(Integer(ge=1)))
    min_tokens: int = field(default=0, validator=Integer(ge=0))
    stop: tuple[str, ...] = field(
        default=(),
        converter=as_tuple,
        validator=Each(Text(min_length=1, max_length=_STOP_CHARACTERS), max_items=_STOPS),
    )
    stop_token_ids: tuple[int, ...] = field(
        default=(), converter=as_tuple, validator=Each(Integer(ge=0), max_items=_STOP_IDS)
    )
    ignore_eos: bool = field(default=False, validator=Flag())
    skip_special_tokens: bool = field(default=True, validator=Flag())
    logprobs: int | None = field(default=None, validator=optional(Integer(ge=0, le=100)))
    guided: GuidedDecoding | None = field(default=None, validator=optional(Instance(GuidedDecoding)))
    adapter: str | None = field(default=None, validator=optional(Text(min_length=1)))

    def __attrs_post_init__(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"must be ≤ max_tokens ({self.max_tokens}), got {self.min_tokens}"
            raise SchemaError("SamplingParams", [Problem("$.min_tokens", message)])
