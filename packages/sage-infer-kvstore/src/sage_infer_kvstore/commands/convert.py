"""Conversion of stored blocks from one engine's format to another's.

The keys of blocks are hashes of the model, the format and all tokens so far, so that those of another format cannot be
derived from them. The prompts give the tokens; ``about.json`` in each folder says the rest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from attrs import define, frozen
from sage_infer.contracts import block_keys
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.sdk.kv_formats import KVPageConverter

from sage_infer_kvstore.commands.found import folders
from sage_infer_kvstore.quantized.numbers import as_float32, from_float32
from sage_infer_kvstore.ssd.about import About
from sage_infer_kvstore.ssd.store import SSDStore

__all__ = ["Conversion", "Prompt", "Space", "convert", "prompts_of", "space_of"]

_BATCH_BYTES = 64 << 20  # of source and target pages that are converted together
_MANY = 2**31  # more blocks than any folder has: reading must not drop the oldest ones


@frozen
class Prompt:
    """Tokens of a prompt, and the salt of its request."""

    tokens: tuple[int, ...]
    salt: bytes = b""


@frozen
class Space:
    """The blocks of one engine's format of one model: a folder in that of an SSD store."""

    folder: Path
    about: About

    def __str__(self) -> str:
        schema = self.about.schema
        form = schema.format_id or "plain"
        return f"{self.folder} ({form}, {schema.dtype}, {schema.page_size} tokens a block)"

    def opened(self, capacity_blocks: int) -> SSDStore:
        about = self.about
        return SSDStore(
            schema=about.schema,
            model_id=about.model_id,
            path=str(self.folder.parent),
            capacity_blocks=capacity_blocks,
        )


@define(kw_only=True)
class Conversion:
    """What a conversion did, in blocks of the target where nothing else is said.

    Attributes:
        written: blocks that are in the target now, and were not before.
        kept: blocks that the target had already.
        dropped: blocks that the target did not take.
        prompts: prompts of the file.
        found_prompts: prompts of which the source has at least one block.
        source_blocks: blocks that were read from the source.
        bytes: bytes of the blocks that were written.
        seconds: time from the first to the last prompt.
    """

    written: int = 0
    kept: int = 0
    dropped: int = 0
    prompts: int = 0
    found_prompts: int = 0
    source_blocks: int = 0
    bytes: int = 0
    seconds: float = 0.0


def space_of(path: Path) -> Space:
    """The blocks in a folder; the folder of a store with several formats must be named to its end.

    Raises:
        InvalidRequest: there is none, there are several, or nothing says what they are.
    """
    found = folders(path)
    if len(found) > 1:
        spaces = [About.read(Path(store.name, store.key_space)) for store in found]
        lines = [
            f"  {Path(store.name, store.key_space)}"
            + ("" if about is None else f"  {about.schema.format_id or 'plain'} {about.schema.dtype}")
            for store, about in zip(found, spaces, strict=True)
        ]
        raise InvalidRequest(f"{path} has blocks in several formats; name one of\n" + "\n".join(lines))
    folder = Path(found[0].name, found[0].key_space)
    about = About.read(folder)
    if about is None:
        raise InvalidRequest(
            f"{folder} does not say which model and format its blocks have; open it once with the engine that it "
            "belongs to"
        )
    return Space(folder, about)


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts of a file with one JSON value a line: token ids, or an answer with ``prompt_token_ids``.

    Raises:
        InvalidRequest: it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    found = [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InvalidRequest(f"{path} has no prompts; expected one on each line")
    return found


def _prompt(line: str, where: str) -> Prompt:
    expected = (
        f"{where}: expected a list of token ids, or an object with prompt_token_ids as the server answers with "
        "return_token_ids, and perhaps cache_salt"
    )
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidRequest(expected) from None
    salt: object = ""
    if isinstance(data, dict):
        if data.get("adapter") is not None:
            raise InvalidRequest(f"{where}: prompts with an adapter are not supported")
        salt, first = data.get("cache_salt", ""), cast(Any, data)
        if "prompt_token_ids" not in data and isinstance(data.get("choices"), list) and data["choices"]:
            first = data["choices"][0]
        data = first.get("prompt_token_ids") if isinstance(first, dict) else None
    is_list = isinstance(data, list) and all(type(token) is int and 0 <= token < 2**31 for token in data)
    if not is_list or not data or not isinstance(salt, str):
        raise InvalidRequest(expected)
    return Prompt(tuple(data), salt.encode())


def convert(
    source: Space, target: Space, prompts: Sequence[Prompt], report: Callable[[float], None]
) -> Conversion:
    """Write the source's blocks of prompts into the target, in its format; ``report`` gets the share done.

    Raises:
        InvalidRequest: both are one, or the source has no block of these prompts.
        CapabilityMismatch: of different weights, or no conversion between the formats is known.
        BackendUnavailable: the wheel with the codec of a format is not installed.
        ConfigError: an engine has one of the folders open.
    """
    _check_weights(source, target)
    converter = KVPageConverter(source.about.schema, target.about.schema, cast=_cast)
    done, begun = Conversion(prompts=len(prompts)), time.monotonic()
    reader = source.opened(max(_MANY, source.about.capacity_blocks))
    try:
        writer = target.opened(target.about.capacity_blocks)
        try:
            run = _Run(converter, reader, writer, source, target, done)
            for number, prompt in enumerate(prompts):
                run.prompt(prompt)
                report((number + 1) / len(prompts))
        finally:
            writer.close()
    finally:
        reader.close()
        source.about.write(source.folder)  # the capacity that its engine has set
    done.seconds = time.monotonic() - begun
    if not done.found_prompts:
        raise InvalidRequest(
            f"{source.folder} has no block of these prompts. Blocks are found by the tokens of whole prompts from "
            "their first token on, chat template included, and by the salt of their requests"
        )
    return done


def _check_weights(source: Space, target: Space) -> None:
    if source.folder.resolve() == target.folder.resolve():
        raise InvalidRequest(f"{source.folder} is source and target; name the folders of two formats")
    for space in (source, target):
        if not space.about.weights_id:
            raise CapabilityMismatch(
                f"{space.folder} does not say which weights its blocks belong to; they may be of another model; "
                "open it once with its engine and a model in GGUF or safetensors"
            )
    if source.about.weights_id != target.about.weights_id:
        raise CapabilityMismatch(
            f"{source.folder} has the KV of the weights {source.about.weights_id}, {target.folder} that of "
            f"{target.about.weights_id}; KV of other weights is of no use"
        )
    for space in (source, target):
        schema = space.about.schema
        if "tensor" in (schema.scale_granularity, schema.value_scale_granularity):
            raise CapabilityMismatch(
                f"blocks of {space.folder} have scales of the whole cache, which are not stored with them"
            )


@frozen
class _Run:
    converter: KVPageConverter
    reader: SSDStore
    writer: SSDStore
    source: Space
    target: Space
    done: Conversion

    def prompt(self, prompt: Prompt) -> None:
        """Convert the blocks of one prompt, in groups that begin with a block on both sides."""
        from_keys, to_keys = (_keys(space, prompt) for space in (self.source, self.target))
        from_size, to_size = (space.about.schema.page_size for space in (self.source, self.target))
        stored = self.reader.match_keys(from_keys) if from_keys else 0
        self.done.found_prompts += bool(stored)
        whole = stored * from_size // to_size  # blocks of the target that are complete
        for first, last in self._groups(whole):
            keys = to_keys[first:last]
            missing = [not held for held in self.writer.contains(keys)]
            self.done.kept += missing.count(False)
            if not any(missing):
                continue
            begin, end = first * to_size // from_size, -(-last * to_size // from_size)
            pages = [memoryview(bytearray(self.reader.schema.bytes_per_page)) for _ in range(begin, end)]
            if not all(self.reader.get(from_keys[begin:end], pages)):
                return  # damaged: the blocks behind are of no use without it
            self.done.source_blocks += len(pages)
            tokens = (end - begin) * from_size
            blocks = self.converter.converted(pages, tokens)[: last - first]
            new = [(key, block) for key, block, gone in zip(keys, blocks, missing, strict=True) if gone]
            stored_now = self.writer.put([key for key, _ in new], [block for _, block in new])
            self.done.written += stored_now
            self.done.dropped += len(new) - stored_now
            self.done.bytes += stored_now * self.writer.schema.bytes_per_page

    def _groups(self, whole: int) -> Iterator[tuple[int, int]]:
        from_size, to_size = (space.about.schema.page_size for space in (self.source, self.target))
        step = math.lcm(from_size, to_size) // to_size
        token_bytes = sum(
            schema.bytes_per_page / schema.page_size for schema in (self.reader.schema, self.writer.schema)
        )
        step *= max(1, int(_BATCH_BYTES / (token_bytes * step * to_size)))
        for first in range(0, whole, step):
            yield first, min(first + step, whole)


def _keys(space: Space, prompt: Prompt) -> list[bytes]:
    return list(block_keys(space.about.model_id, space.about.schema, prompt.tokens, salt=prompt.salt))


def _cast(data: memoryview, dtype: str, out: memoryview, out_dtype: str) -> None:
    """``sdk.kv_formats.Cast`` with NumPy."""
    from_float32(as_float32(np.frombuffer(data, np.uint8), dtype), np.frombuffer(out, np.uint8), out_dtype)
