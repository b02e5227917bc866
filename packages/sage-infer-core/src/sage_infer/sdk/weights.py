"""Id of a model's weights by content, independent of the engine that loads them.

It is the BLAKE2b hash (16 bytes, hex) of one line of UTF-8 text per tensor of the source files, sorted by name::

    NAME <tab> TYPE <tab> SHAPE <tab> XXH3 <newline>

Names and types have the files' spelling (GGUF: ``blk.0.attn_q.weight``, ``Q4_1``; safetensors:
``model.layers.0.self_attn.q_proj.weight``, ``BF16``). The shape is in NumPy's order, separated by commas. The last
column is the hex digest of XXH3 (128 bits) of the tensor's bytes in the file. The distribution of tensors over files
and metadata such as a chat template do not affect the id. The precision that an engine loads them in does not either.
A model that was saved in another type or format has another id, unless ``record_source`` names its source.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.models.files import open_model_file
from sage_infer.models.wholeness import read_json
from sage_infer.sdk.gguf import TENSOR_TYPES, GgufHeader

__all__ = ["record_source", "weights_id_of"]

SOURCE_FILE = "source.json"
"""Where ``record_source`` writes in a converted folder."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
_PART = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")
_Tensor = tuple[str, str, Sequence[int], memoryview]


def weights_id_of(path: str | Path) -> str:
    """Return the id of a GGUF file (the first one of a split model) or of a folder of safetensors files.

    All tensors are read. The id is empty if the folder has no safetensors file, or the GGUF file has tensors of an
    unknown type.

    Raises:
        ModelFileError: a file cannot be read, or is incomplete.
    """
    source = Path(path)
    if not source.is_dir():
        try:
            return _hashed(_gguf_tensors(source))
        except UnsupportedFeature:
            return ""
    own = _own_id(source)
    recorded = read_json(source / SOURCE_FILE)
    if own and recorded.get("converted") == own and isinstance(recorded.get("weights_id"), str):
        return str(recorded["weights_id"])
    return own


def record_source(folder: str | Path, weights_id: str) -> None:
    """Record in a folder of safetensors files, made by conversion, the id of the weights that it was made of.

    ``weights_id_of(folder)`` then returns that id as long as the folder's tensors are unchanged.
    """
    folder = Path(folder)
    facts = {"weights_id": weights_id, "converted": _own_id(folder)}
    (folder / SOURCE_FILE).write_text(json.dumps(facts), encoding="utf-8")


def _own_id(folder: Path) -> str:
    files = _safetensors_files(folder)
    return _hashed(tensor for file in files for tensor in _safetensors(file)) if files else ""


def _hashed(tensors: Iterable[_Tensor]) -> str:
    import xxhash

    lines = sorted(
        f"{name}\t{kind}\t{','.join(map(str, shape))}\t{xxhash.xxh3_128_hexdigest(data)}\n"
        for name, kind, shape, data in tensors
    )
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def _gguf_tensors(path: Path) -> Iterator[_Tensor]:
    part = _PART.fullmatch(path.name)
    count = int(part["count"]) if part else 1
    names = (
        [f"{part['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)] if part else [path.name]
    )
    for name in names:
        header = GgufHeader(path.with_name(name))
        for info in header.tensors:
            if info.type not in TENSOR_TYPES:
                raise UnsupportedFeature(
                    f"{header.path}: tensor {info.name} has the unknown GGML type {info.type}"
                )
            kind, block, block_bytes = TENSOR_TYPES[info.type]
            begin = header.data_start + info.offset
            end = begin + math.prod(info.shape) // block * block_bytes
            if end > header.size:
                raise _truncated(header.path, info.name, end, header.size)
            yield info.name, kind, info.shape, memoryview(header.data)[begin:end]


def _safetensors_files(folder: Path) -> list[Path]:
    """The files that hold a folder's tensors: a single one, the shards of an index, or whatever there is."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    shards = read_json(folder / _INDEX).get("weight_map")
    if isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values()):
        return [folder / name for name in sorted(set(shards.values()))]
    return sorted(folder.glob("*.safetensors"))


def _safetensors(path: Path) -> Iterator[_Tensor]:
    """Tensors of one file: a length, a JSON header, and the bytes."""
    try:
        with open_model_file(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap refuses an empty file
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    start = 8 + int.from_bytes(data[:8], "little")
    if start > min(len(data), _LONGEST_HEADER):
        raise ModelFileError(f"{path}: truncated, or not a safetensors file; fetch it again")
    try:
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        entries = [
            (str(name), str(info["dtype"]), [int(size) for size in info["shape"]], info["data_offsets"])
            for name, info in header.items()
        ]
        ranges = [(start + int(begin), start + int(end)) for *_, (begin, end) in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{path}: invalid safetensors header: {error!r}"[:300]) from error
    for (name, kind, shape, _), (begin, end) in zip(entries, ranges, strict=True):
        if not start <= begin <= end <= len(data):
            raise _truncated(path, name, end, len(data))
        yield name, kind, shape, memoryview(data)[begin:end]


def _truncated(path: Path, name: str, end: int, size: int) -> ModelFileError:
    return ModelFileError(
        f"{path}: truncated: tensor {name} ends at byte {end:,}, but the file has {size:,} bytes; fetch it again"
    )
