"""Parsing of reasoning and tool calls in a model's text, in the formats of model families."""

from sage_infer.sdk.answers.families import FAMILIES, THOUGHTS, ModelFormat, answer_format, json_answer_format
from sage_infer.sdk.answers.reader import TextAnswerReader, read_whole

__all__ = [
    "FAMILIES",
    "THOUGHTS",
    "ModelFormat",
    "TextAnswerReader",
    "answer_format",
    "json_answer_format",
    "read_whole",
]
