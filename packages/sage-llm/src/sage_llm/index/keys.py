"""Keys of the index: a chain of xxh3 hashes over the blocks of a prompt.

Keys are 60-bit integers, the largest that Python stores in 32 bytes. Engines have longer keys of their own; the index
maps them to these. A collision costs a prefill that was expected to be cached, never a wrong output: only engines
decide what they reuse.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

__all__ = ["engine_key", "next_keys", "prompt_keys", "root_key", "text_keys"]

_MASK = (1 << 60) - 1
_TEXT_BLOCK = 2048  # bytes of text per key where no tokenizer is at hand


def root_key(model: str, *, salt: bytes = b"", adapter: str = "", block: int = 0) -> int:
    """Return the key before a sequence's first block.

    Sequences with different models, salts, adapters or block sizes have no key in common.
    """
    parts = (model.encode(), salt, adapter.encode(), str(block).encode())
    return xxh3_64_intdigest(b"".join(len(p).to_bytes(8, "little") + p for p in parts)) & _MASK


def prompt_keys(tokens: Sequence[int], block: int, root: int) -> tuple[int, ...]:
    """Return the keys of a prompt's full blocks of ``block`` tokens."""
    return tuple(next_keys(tokens, block, root))


def next_keys(tokens: Sequence[int], block: int, parent: int) -> list[int]:
    """Return the keys of the full blocks that follow the block with the key ``parent``."""
    data = memoryview(array("I", tokens)).cast("B")
    size = block * 4
    keys = []
    for start in range(0, len(data) - size + 1, size):
        parent = xxh3_64_intdigest(data[start : start + size], parent) & _MASK
        keys.append(parent)
    return keys


def text_keys(text: str, root: int) -> tuple[int, ...]:
    """Return keys of the full blocks of 2 KiB of a text, for models whose tokenizer is not at hand."""
    data = memoryview(text.encode("utf-8", "surrogatepass"))
    keys = []
    for start in range(0, len(data) - _TEXT_BLOCK + 1, _TEXT_BLOCK):
        root = xxh3_64_intdigest(data[start : start + _TEXT_BLOCK], root) & _MASK
        keys.append(root)
    return tuple(keys)


def engine_key(key: bytes) -> int:
    """Return an engine's key in the short form that the index maps from."""
    return int.from_bytes(key[:8], "little") & _MASK
