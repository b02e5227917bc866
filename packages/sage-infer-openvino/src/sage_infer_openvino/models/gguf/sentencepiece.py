"""SentencePiece's BPE from a GGUF's vocabulary: pieces with scores (``tokenizer.ggml.model`` = ``llama``).

SentencePiece and llama.cpp's ``llm_tokenizer_spm`` repeatedly join the neighbours whose joint piece has the best score.
The equivalent merges are all splits of a piece into two pieces, best score first. Characters without a piece become
UTF-8 bytes. transformers converts such vocabularies in the same way.
"""

from __future__ import annotations

from typing import Any

from sage_infer.errors import ModelFileError
from tokenizers import Tokenizer, decoders, models, normalizers

from sage_infer_openvino.models.gguf.file import GgufFile

__all__ = ["sentencepiece_tokenizer"]

_NORMAL, _UNKNOWN = 1, 2


def sentencepiece_tokenizer(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """The tokenizer without its special tokens. Raises :class:`ModelFileError` if a token has no score or type."""
    scores, types = (_numbers(file, f"tokenizer.ggml.{key}", len(tokens)) for key in ("scores", "token_type"))
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    model = models.BPE(
        vocab=vocab,
        merges=_merges(tokens, scores, types),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaced = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if spaced else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if spaced else [])])
    return tokenizer


def _merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Merges of all tokens except special ones, which are only matched whole."""
    pieces = {
        token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _NORMAL
    }
    found = [
        (-scores[index], index, cut)
        for token, index in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [(tokens[index][:cut], tokens[index][cut:]) for _, index, cut in sorted(found)]


def _numbers(file: GgufFile, key: str, count: int) -> list[Any]:
    value = file.metadata.get(key)
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(item, int | float) for item in value)
    ):
        raise ModelFileError(
            f"{file.path}: metadata {key} is not one number for each of {count} tokens; convert the model again"
        )
    return value
