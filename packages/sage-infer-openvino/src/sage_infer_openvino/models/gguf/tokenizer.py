"""Builds a ``tokenizers.Tokenizer`` from a GGUF file's metadata: byte-level BPE, or SentencePiece's BPE
(``gguf.sentencepiece``).

A GGUF contains only the name of its pre-tokenization rule (``tokenizer.ggml.pre``). The rules below are those of
llama.cpp's ``llm_tokenizer_bpe`` (``src/llama-vocab.cpp``), which defines the names.
"""

from __future__ import annotations

from typing import Any

from sage_infer.errors import ModelFileError, UnsupportedFeature
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sage_infer_openvino.models.file_checks import special_token_id
from sage_infer_openvino.models.gguf.file import GgufFile
from sage_infer_openvino.models.gguf.sentencepiece import sentencepiece_tokenizer

__all__ = ["adds_bos", "build_tokenizer", "end_of_generation_ids", "special_id"]

_CONTROL, _USER_DEFINED = 3, 4

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# Words are split between lower and upper case. OpenAI's o200k adds contractions; Mistral's Tekken does not.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+@|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*@|#"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace("@", "").replace("#", r"\p{N}")
_O200K = _CASED.replace("@", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("#", r"\p{N}{1,3}")

_DIGITS_THEN_GPT2 = (r"\p{N}", _GPT2)
_SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "roberta-bpe"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_THEN_GPT2
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (_LLAMA3,)
    ),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_O200K,),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (_QWEN2,)),
}
# These vocabularies contain words that merges cannot produce.
_IGNORE_MERGES = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"}
_NFC = {"qwen2", "deepseek-r1-qwen"}

# A file names one or two end-of-text ids; models also end their turn with others of these tokens.
_END_TEXTS = {
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
}


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The file's tokenizer with its special tokens; it adds BOS or EOS if the file says so.

    Raises :class:`UnsupportedFeature` for tokenizers other than byte-level and SentencePiece's BPE and for an unknown
    pre-tokenization rule, and :class:`ModelFileError` if vocabulary and merges do not match.
    """
    kind, tokens = file.metadata.get("tokenizer.ggml.model"), _strings(file, "tokenizer.ggml.tokens")
    match kind:
        case "gpt2":
            tokenizer = _byte_level(file, tokens)
        case "llama":
            tokenizer = sentencepiece_tokenizer(file, tokens)
        case _:
            raise UnsupportedFeature(
                f"{file.path}: tokenizer.ggml.model {kind!r} is not supported; supported: 'gpt2' (byte-level BPE) and "
                "'llama' (SentencePiece); use the model's Hugging Face folder with its tokenizer.json"
            )
    _add_whole_tokens(tokenizer, file, tokens)
    _add_template(tokenizer, file, tokens)
    return tokenizer


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise UnsupportedFeature(
            f"{file.path}: tokenizer.ggml.pre {pre!r} is not supported; supported: "
            f"{', '.join(sorted(_SPLITS))}; "
            "use the model's Hugging Face folder with its tokenizer.json"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for merge in _strings(file, "tokenizer.ggml.merges"):
        # From index 1, because the left half may itself start with a space in vocabularies without GPT-2's alphabet.
        cut = merge.find(" ", 1)
        pairs.append((merge[:cut], merge[cut + 1 :]))
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _IGNORE_MERGES))
    # `tokenizers` raises a bare Exception for a merge of tokens that are not in the vocabulary.
    except Exception as error:
        raise ModelFileError(f"{file.path}: vocabulary and merges do not match: {error}") from error
    if pre in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in _SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def end_of_generation_ids(file: GgufFile) -> tuple[int, ...]:
    """Ids that end a text or a turn: those of the metadata, then all known end tokens of the vocabulary."""
    meta = file.metadata
    named = [special_id(file, key) for key in ("eos", "eot", "eom")]
    types = _types(file)
    known = [
        index
        for index, (token, kind) in enumerate(zip(meta.get("tokenizer.ggml.tokens", []), types, strict=False))
        if kind in (_CONTROL, _USER_DEFINED) and token in _END_TEXTS
    ]
    return tuple(dict.fromkeys([index for index in named if index is not None] + known))


def special_id(file: GgufFile, key: str) -> int | None:
    """Id of a special token (``eos``, ``bos``, …); None if missing or invalid."""
    name = f"tokenizer.ggml.{key}_token_id"
    count = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    return special_token_id(file.metadata.get(name), f"{file.path}: metadata {name}", count)


def _types(file: GgufFile) -> list[int]:
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(types, list):
        raise ModelFileError(f"{file.path}: metadata tokenizer.ggml.token_type is not a list of numbers")
    return types


def adds_bos(file: GgufFile) -> bool:
    """Whether a text begins with BOS; llama.cpp's default if the file does not say."""
    meta = file.metadata
    default = meta.get("tokenizer.ggml.model") == "llama" or meta.get("tokenizer.ggml.pre") in _IGNORE_MERGES
    return bool(meta.get("tokenizer.ggml.add_bos_token", default))


def _add_whole_tokens(tokenizer: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    """Register tokens that are matched whole in a text. They are in the vocabulary, so no id is added."""
    types, kept = _types(file), _keeps_space(file)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        whole = [
            AddedToken(
                token, normalized=False, special=special, rstrip=kept is not None and token not in kept
            )
            for token, token_kind in zip(tokens, types, strict=False)
            if token_kind == kind
        ]
        if special:
            tokenizer.add_special_tokens(whole)
        else:
            tokenizer.add_tokens(whole)


def _keeps_space(file: GgufFile) -> set[str] | None:
    """Special tokens that keep the space after them, if the others strip it; ``None``: no token strips it.

    Only Phi-3's tokens strip it. A GGUF does not say so; llama.cpp goes by the model's name (``llama-vocab.cpp``).
    """
    meta = file.metadata
    phi = meta.get("general.architecture") == "phi3" and meta.get("tokenizer.ggml.model") == "llama"
    return {"<unk>", "<s>", "<|endoftext|>"} if phi else None


def _add_template(tokenizer: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    meta = file.metadata
    before = special_id(file, "bos") if adds_bos(file) else None
    after = special_id(file, "eos") if meta.get("tokenizer.ggml.add_eos_token") else None
    ids = [index for index in (before, after) if index is not None]
    if not ids:
        return
    single = [
        *([tokens[before]] if before is not None else []),
        "$A",
        *([tokens[after]] if after is not None else []),
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(tokens[i], i) for i in ids]
    )


def _strings(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelFileError(
            f"{file.path}: metadata {key} is missing or not a list of strings; convert the model again"
        )
    return value
