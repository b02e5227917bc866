"""Runs a decoder with paged attention over KV blocks managed in Python.

A *block* holds the keys and values of ``block_size`` consecutive tokens of one sequence, for every layer.
The caller assigns blocks: for each sequence, a step receives the new tokens, the number of previous
tokens, and the blocks. So the caller can share blocks between sequences, move them to another process, or free
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt, OutOfMemory, UnsupportedFeature

from sage_infer_openvino.device import check_precision, compile_model, infer, latency_properties
from sage_infer_openvino.models.decoder_graph import SAMPLED_INPUT, to_paged_attention
from sage_infer_openvino.ov_runtime import ov

__all__ = ["KVLayout", "PagedRunner", "SequenceSlice"]

_ALIGNMENT = 64
_WARM_UP_TOKENS = 16
# Activations per scale for dynamic quantization; 0 disables it, and OpenVINO's default is 32.
_ROUNDED_GROUP, _NOT_ROUNDED = "32", "0"


@attrs.frozen
class SequenceSlice:
    """The new tokens of one sequence in one step.

    ``block_ids`` are the blocks of the sequence in order, with room for at least ``past_len + len(token_ids)`` tokens.
    They contain ``past_len`` tokens; the step writes the rest.
    """

    token_ids: Sequence[int]
    past_len: int
    block_ids: Sequence[int]


@attrs.frozen
class KVLayout:
    """Memory layout of one layer's keys and values in one block, as defined by this OpenVINO on this device.

    Shapes are those of one block, ``(kv_heads, …)``; quantized types carry their scales inside. Two runners
    may exchange blocks if their layouts are equal. The layout includes OpenVINO's version, because no API
    guarantees it.
    """

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    key_type: str
    value_type: str
    openvino_version: str

    @property
    def block_size(self) -> int:
        """Tokens in a block: values are ``[kv_heads, tokens, width]``; keys may be transposed or carry rows
        of scales.
        """
        return self.value_shape[1]


class PagedRunner:
    """A compiled decoder with its KV blocks and one infer request. Not thread-safe: one step at a time.

    ``model`` is an ``openvino.Model`` in stateful form (it is rewritten) or the path of its XML.
    ``precision`` is the type of matrix products (``f32``, ``bf16``, ``f16``); ``kv_precision`` the type in which keys
    and values are stored (default: ``precision``; ``u8`` is smaller and changes results).
    ``dynamic_quantization`` rounds activations to 8 bits before products with quantized weights, in groups, where
    the device multiplies such (on CPUs: VNNI). ``threads`` limits the CPU threads. The KV cache has ``num_blocks``
    blocks, or as many as ``kv_cache_bytes`` hold. ``cache_dir`` lets OpenVINO keep its compiled form there. With
    ``precision="f32"`` and without ``dynamic_quantization`` results do not depend on the rest of the batch.

    Raises :class:`CapabilityMismatch` when the device does not have these precisions,
    :class:`UnsupportedFeature` if it cannot run the model, and :class:`OutOfMemory` if the blocks do not fit.
    """

    def __init__(
        self,
        model: Any,
        num_blocks: int | None = None,
        *,
        kv_cache_bytes: int | None = None,
        device: str = "CPU",
        precision: str = "f32",
        kv_precision: str | None = None,
        dynamic_quantization: bool = False,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self._core = ov.Core()
        self._device, self._precision = device, precision
        # warm_up tests whether f16 works.
        self.supported_precisions = tuple(
            name
            for name in check_precision(self._core, device, precision)
            if name != "fp16" or precision == "f16"
        )
        if isinstance(model, str | Path):
            model = self._core.read_model(str(model))
        to_paged_attention(model)
        # Plug-ins choose the cache's layout at compile time; nothing here assumes one.
        properties: dict[str, Any] = {
            **latency_properties(device, precision, threads),
            "KV_CACHE_PRECISION": kv_precision or precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _ROUNDED_GROUP if dynamic_quantization else _NOT_ROUNDED,
        }
        if cache_dir is not None:
            properties["CACHE_DIR"] = str(cache_dir)
        try:
            self._compiled = compile_model(self._core, model, device, properties)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            if properties["KV_CACHE_PRECISION"] != "f32":
                raise CapabilityMismatch(
                    f"OpenVINO does not support KV in {properties['KV_CACHE_PRECISION']} on device {device} of this "
                    f"machine ({reason}); set kv_precision to another one, such as f32"
                ) from error
            raise UnsupportedFeature(
                f"OpenVINO cannot compile this model for device {device}: {reason}"
            ) from error
        self._request = self._compiled.create_infer_request()
        self.num_layers = sum(port.any_name.startswith("key_cache.") for port in self._compiled.inputs)
        self.kv_layout = self._read_layout()
        self.block_size = self.kv_layout.block_size
        self.block_nbytes = self._block_nbytes()
        if num_blocks is None:
            num_blocks = (kv_cache_bytes or 0) // self.block_nbytes
        if num_blocks < 1:
            raise InvalidRequest(
                f"the KV cache has {num_blocks} blocks of {self.block_nbytes} bytes, expected at least one; "
                "raise its size"
            )
        self.num_blocks = num_blocks
        self._caches = [
            self._allocate(f"{kind}_cache.{layer}")
            for layer in range(self.num_layers)
            for kind in ("key", "value")
        ]
        self.vocab_size = int(self._compiled.output("logits").partial_shape[-1].get_length())
        self._inputs: list[Any] = []

    def step(self, batch: Sequence[SequenceSlice]) -> npt.NDArray[np.float32]:
        """Compute the batch's tokens, write their keys and values, and return the logits of each slice's last token.

        A batch may mix prompts, parts of prompts and single tokens. The result is float32 ``[len(batch), vocab_size]``;
        the caller may modify it, and the next step overwrites it. Raises :class:`InvalidRequest`, before any
        computation, for a slice without tokens or with too few blocks, and for invalid token or block ids, for which
        OpenVINO would read out of bounds, and :class:`OutOfMemory` if OpenVINO did not compute it.
        """
        if not batch:
            return np.zeros((0, self.vocab_size), np.float32)
        lengths = np.array([len(part.token_ids) for part in batch], np.int32)
        past = np.array([part.past_len for part in batch], np.int32)
        totals = past + lengths
        used = -(-totals // self.block_size)
        for part, length, blocks in zip(batch, lengths, used, strict=True):
            if length == 0 or part.past_len < 0 or blocks > len(part.block_ids):
                raise InvalidRequest(
                    f"a slice has {length} tokens after {part.past_len}, and {len(part.block_ids)} "
                    f"blocks of {self.block_size} "
                    "tokens; expected at least one token, and blocks for all tokens"
                )
        tokens = np.concatenate([np.asarray(part.token_ids, np.int64) for part in batch])
        blocks = np.concatenate(
            [np.asarray(part.block_ids[:n], np.int32) for part, n in zip(batch, used, strict=True)]
        )
        _check_range("token id", tokens, self.vocab_size)
        _check_range("block id", blocks, self.num_blocks)
        starts = np.zeros(len(batch) + 1, np.int32)
        np.cumsum(lengths, out=starts[1:])
        block_starts = np.zeros(len(batch) + 1, np.int32)
        np.cumsum(used, out=block_starts[1:])
        within = np.arange(len(tokens), dtype=np.int64) - np.repeat(starts[:-1], lengths)
        inputs = {
            "input_ids": tokens,
            "position_ids": np.repeat(past, lengths) + within,
            "past_lens": past,
            "subsequence_begins": starts,
            "block_indices": blocks,
            "block_indices_begins": block_starts,
            "max_context_len": np.array(totals.max(), np.int32),
            SAMPLED_INPUT: starts[1:].astype(np.int64) - 1,
        }
        # The request references these arrays until the next step replaces them.
        self._inputs = list(inputs.values())
        for name, value in inputs.items():
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        logits: npt.NDArray[np.float32] = infer(self._request, "logits")
        return logits.reshape(len(batch), self.vocab_size)

    def warm_up(self) -> None:
        """Compute a few tokens in the first blocks before their first use, and check the result.

        OpenVINO packs the weights in the first product with few rows, which would slow down a request with a cached
        prefix.

        Raises :class:`CapabilityMismatch` if the logits are not finite: OpenVINO 2026.4 lists f16 on CPUs with
        AVX512-FP16, but its attention computes NaN for two or more tokens of a sequence.
        """
        count = min(_WARM_UP_TOKENS, self.num_blocks * self.block_size)
        logits = self.step([SequenceSlice([0] * count, 0, range(-(-count // self.block_size)))])
        if not np.isfinite(logits).all():
            name = self._core.get_property(self._device, "FULL_DEVICE_NAME")
            raise CapabilityMismatch(
                f"OpenVINO {ov.get_version()} computes non-finite numbers with precision={self._precision} "
                f"of this model on {self._device} ({name}); set precision to f32, or bf16 if supported"
            )

    def read_block(self, block_id: int, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """A copy of one block, ``[block_nbytes]``: layer 0's key bytes, its value bytes, layer 1's key bytes, …

        The copy is written to ``out`` if given. Only runners with an equal ``kv_layout`` can use it.
        """
        _check_range("block id", np.asarray([block_id]), self.num_blocks)
        if out is None:
            out = np.empty(self.block_nbytes, np.uint8)
        at = 0
        for cache in self._caches:
            width = cache.shape[1]
            out[at : at + width] = cache[block_id]
            at += width
        return out

    def write_block(self, block_id: int, data: Any) -> None:
        """Overwrite one block with the bytes (any buffer) of :meth:`read_block`, of this or another process.

        Raises :class:`KVCorrupt` if their number is not ``block_nbytes``.
        """
        _check_range("block id", np.asarray([block_id]), self.num_blocks)
        source = np.frombuffer(data, dtype=np.uint8)
        if source.size != self.block_nbytes:
            raise KVCorrupt(
                f"the KV block has {source.size} bytes, expected {self.block_nbytes}; it is from another "
                "model or KV type"
            )
        at = 0
        for cache in self._caches:
            width = cache.shape[1]
            cache[block_id] = source[at : at + width]
            at += width

    def copy_block(self, source: int, target: int) -> None:
        """Copy block ``source`` to block ``target``, for a sequence that diverges from a shared prefix."""
        _check_range("block id", np.asarray([source, target]), self.num_blocks)
        for cache in self._caches:
            cache[target] = cache[source]

    def _read_layout(self) -> KVLayout:
        shapes, types = [], []
        for name in ("key_cache.0", "value_cache.0"):
            port = self._compiled.input(name)
            shape = port.partial_shape
            if shape.rank.is_dynamic or len(shape) != 4 or any(shape[axis].is_dynamic for axis in (1, 2, 3)):
                raise UnsupportedFeature(
                    f"{name} has the shape {shape} in OpenVINO {ov.get_version()}, expected [?, a, b, c]"
                )
            shapes.append(tuple(int(shape[axis].get_length()) for axis in (1, 2, 3)))
            types.append(port.element_type.get_type_name())
        return KVLayout(shapes[0], shapes[1], types[0], types[1], ov.get_version())

    def _block_nbytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        caches = [port for port in self._compiled.inputs if "_cache." in port.any_name]
        bits: list[int] = [
            math.prod(port.partial_shape[axis].get_length() for axis in (1, 2, 3))
            * port.element_type.bitwidth
            for port in caches
        ]
        return sum(bits) // 8

    def _allocate(self, name: str) -> npt.NDArray[np.uint8]:
        """Allocate a zeroed cache for the infer request; returns its bytes, ``[num_blocks, bytes per block]``."""
        port = self._compiled.input(name)
        shape = [self.num_blocks, *(port.partial_shape[axis].get_length() for axis in (1, 2, 3))]
        nbytes = int(np.prod(shape, dtype=np.int64)) * port.element_type.bitwidth // 8
        try:
            # Zeroed lazily by the operating system: unused blocks cost no memory.
            memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise OutOfMemory(
                f"not enough memory for {self.num_blocks} KV blocks; reduce their number"
            ) from error
        start = -memory.ctypes.data % _ALIGNMENT
        cache = memory[start : start + nbytes]
        tensor = ov.Tensor(cache, ov.Shape(shape), port.element_type)
        self._request.set_tensor(name, tensor)
        return cache.reshape(self.num_blocks, -1)


def _check_range(what: str, ids: npt.NDArray[Any], end: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= end:
        raise InvalidRequest(f"{what} {low if low < 0 else high} does not exist, expected 0 to {end - 1}")
