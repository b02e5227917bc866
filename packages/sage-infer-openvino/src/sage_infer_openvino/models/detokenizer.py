"""Incremental detokenization that never emits partial characters.

A token stands for bytes, and a character may span tokens (an emoji often spans four). So every token is mapped
to its bytes once, and an incremental UTF-8 decoder holds back the bytes of an incomplete character. The cost per token
is constant, and the concatenated pieces equal the text of all tokens. Invalid UTF-8 becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterable
from typing import Any

from sage_infer.errors import InvalidRequest, UnsupportedFeature
from tokenizers import Tokenizer

__all__ = ["IncrementalDetokenizer", "TokenBytes"]


class TokenBytes:
    """The bytes of every token of a vocabulary, looked up on first use.

    Supports the two decoders of generative models: ``ByteLevel`` (GPT-2's alphabet of 256 letters) and SentencePiece's
    (``▁`` for a space, ``<0xAB>`` for a byte). Raises :class:`UnsupportedFeature` for others.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder: dict[str, Any] = json.loads(tokenizer.to_str()).get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        kinds = [step.get("type") for step in steps]
        self._byte_level = kinds == ["ByteLevel"]
        if not self._byte_level and not {"Replace", "ByteFallback", "Metaspace"} & set(kinds):
            raise UnsupportedFeature(
                f"text cannot be streamed from a tokenizer with the decoder {kinds}; "
                "supported: ByteLevel and ByteFallback"
            )
        #: Whether the leading space that SentencePiece adds to a text is removed.
        self.strips_first_space = "Strip" in kinds or any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps
        )
        self._added = tokenizer.get_added_tokens_decoder()
        self._cache: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._compute(token_id)
        return found

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        if token is None:
            # Models may have more rows than tokenizer tokens; such ids have no text.
            return b""
        if self._byte_level:
            try:
                return bytes(_LETTER_TO_BYTE[letter] for letter in token)
            except KeyError:
                return token.encode()
        if (
            token_id not in self._added
            and len(token) == 6
            and token.startswith("<0x")
            and token.endswith(">")
        ):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace("▁", " ").encode()


class IncrementalDetokenizer:
    """Converts a stream of token ids to text. ``skip`` contains ids without text (special tokens)."""

    def __init__(self, token_bytes: TokenBytes, skip: Collection[int] = ()) -> None:
        self._bytes = token_bytes
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = token_bytes.strips_first_space

    def push(self, token_id: int) -> str:
        """The text completed by this token; empty while a character is incomplete."""
        if token_id < 0:
            raise InvalidRequest(f"token id {token_id} does not exist, expected 0 or more")
        if token_id in self._skip:
            return ""
        return self._first(self._decoder.decode(self._bytes[token_id]))

    def push_all(self, token_ids: Iterable[int]) -> str:
        """:meth:`push` for several tokens."""
        return "".join(map(self.push, token_ids))

    def flush(self) -> str:
        """The rest at the end of the stream: an incomplete character becomes U+FFFD."""
        return self._first(self._decoder.decode(b"", final=True))

    def _first(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


def _letters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes map to themselves, the other 68 to the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_LETTER_TO_BYTE = _letters()
