"""Thoughts and tool calls in a model's text: the forms of model families, and a reader for each."""

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
