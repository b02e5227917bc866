"""Id of a model's weights by content, independent of the engine.

It is the BLAKE2b hash (16 bytes, hex) of one line of UTF-8 text per tensor of the source files, sorted by name::

    NAME <tab> TYPE <tab> SHAPE <tab> XXH3 <newline>

Names and types have the files' spelling (GGUF: ``blk.0.attn_q.weight``, ``Q4_1``; safetensors:
``model.layers.0.self_attn.q_proj.weight``, ``BF16``). The shape is in NumPy's order, separated by commas. The last
column is the hex digest of XXH3 (128 bits) of the tensor's bytes in the file. The distribution of tensors over files
and metadata such as a chat template do not affect the id. A model converted to another format has another id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import xxhash

__all__ = ["weights_id_of"]


def weights_id_of(tensors: Iterable[tuple[str, str, Sequence[int], memoryview]]) -> str:
    """The id of tensors, each with name, type, shape and bytes."""
    lines = sorted(
        f"{name}\t{kind}\t{','.join(map(str, shape))}\t{xxhash.xxh3_128_hexdigest(data)}\n"
        for name, kind, shape, data in tensors
    )
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()
