"""A worker's KV cache as plain data, read from its model runner. Runs in vLLM's worker processes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

__all__ = ["facts_of_connector", "kv_facts", "layer_place"]

_SPECS = "vllm.v1.kv_cache_interface"


def kv_facts(worker: Any) -> dict[str, Any]:
    """The layout of each layer's KV cache in order, the total bytes, and the rotation of keys.

    ``kind`` is the class name of the layer's specification in vLLM; for a vendor's subclass, that of its base class.
    ``isa`` is the instruction set that determines the page layout of vLLM's CPU kernels.
    """
    runner = worker.model_runner
    blocks, groups = _block_sizes(runner), _attention_groups(runner)
    context = getattr(getattr(runner, "compilation_config", None), "static_forward_context", {})
    layers, storages = [], {}
    for name, spec in sorted(runner.get_kv_cache_spec().items(), key=lambda item: layer_place(item[0])):
        tensors = list(_tensors(getattr(context.get(name), "kv_cache", None)))
        storages.update({_storage(tensor).data_ptr(): _storage(tensor).nbytes() for tensor in tensors})
        layer = _layer(spec, blocks.get(name))
        layers.append({**layer, **_attention(groups.get(name)), **_form(tensors, bool(layer["num_heads"]))})
    return {"layers": layers, "bytes": sum(storages.values()), **_rotation(runner)}


def facts_of_connector(config: Any, cache: Any) -> dict[str, Any]:
    """``kv_facts`` for a connector in a worker, which does not reach the worker's model runner.

    Args:
        config: vLLM's configuration.
        cache: vLLM's ``KVCacheConfig``.
    """
    from vllm.model_executor.layers.rotary_embedding import (
        _ROPE_DICT,  # all of the process's rotary embeddings
    )

    context = config.compilation_config.static_forward_context
    specs, groups = {}, []
    for group in cache.kv_cache_groups:
        own = getattr(group.kv_cache_spec, "kv_cache_specs", {})
        for name in group.layer_names:
            specs[name] = own.get(name, group.kv_cache_spec)
            groups.append(_attention_of(name, context.get(name)))
    runner = SimpleNamespace(
        get_kv_cache_spec=lambda: specs,
        kv_cache_config=cache,
        attn_groups=[groups],
        compilation_config=config.compilation_config,
        model=SimpleNamespace(modules=_ROPE_DICT.values),
    )
    return kv_facts(SimpleNamespace(model_runner=runner))


def _attention_of(name: str, layer: Any) -> Any:
    """A layer's attention, in the form of the model runner's groups."""
    isa = getattr(layer, "isa", None) or getattr(getattr(layer, "impl", None), "isa", "")
    return SimpleNamespace(
        layer_names=[name], backend=layer.attn_backend, metadata_builders=[SimpleNamespace(isa=isa)]
    )


def layer_place(name: str) -> tuple[int, str]:
    """Index of a layer in the model, from a name such as ``model.layers.3.self_attn.attn``."""
    number = re.search(r"\.(\d+)(\.|$)", name)
    return (int(number[1]) if number else -1, name)


def _block_sizes(runner: Any) -> dict[str, int]:
    """Tokens per block of each layer, after vLLM has equalized the bytes per block in hybrid models."""
    found = {}
    for group in getattr(getattr(runner, "kv_cache_config", None), "kv_cache_groups", ()):
        own = getattr(group.kv_cache_spec, "kv_cache_specs", {})
        for name in group.layer_names:
            found[name] = int(own.get(name, group.kv_cache_spec).block_size)
    return found


def _attention_groups(runner: Any) -> dict[str, Any]:
    groups = [group for groups in getattr(runner, "attn_groups", ()) for group in groups]
    return {name: group for group in groups for name in group.layer_names}


def _layer(spec: Any, block_size: int | None) -> dict[str, Any]:
    if block_size is not None and block_size != spec.block_size:
        spec = dataclasses.replace(spec, block_size=block_size)
    shapes = getattr(spec, "shapes", ())
    state = sum(
        math.prod(shape) * dtype.itemsize
        for shape, dtype in zip(shapes, getattr(spec, "dtypes", ()), strict=True)
    )
    heads, dim = int(getattr(spec, "num_kv_heads", 0)), int(getattr(spec, "head_size", 0))
    page = spec.page_size_bytes if shapes else getattr(spec, "unpadded_page_size_bytes", spec.page_size_bytes)
    return {
        "kind": _kind(type(spec)),
        "block_size": int(spec.block_size),
        "num_heads": heads,
        "head_dim": dim,
        "value_dim": int(getattr(spec, "head_size_v", dim)),
        "window": getattr(spec, "sliding_window", None),
        "chunk": getattr(spec, "attention_chunk_size", None),
        "tokens_per_entry": float(getattr(spec, "tokens_per_state", 1)) if heads else 1.0,
        "dtype": str(getattr(spec, "dtype", "")).removeprefix("torch."),
        "page_bytes": int(page),
        "state_bytes": int(state),
        "replicated": bool(getattr(spec, "tp_replicated", False)),
    }


def _kind(spec: type[Any]) -> str:
    return next((cls.__name__ for cls in spec.__mro__ if cls.__module__ == _SPECS), spec.__name__)


def _attention(group: Any) -> dict[str, str]:
    if group is None:
        return {"backend": "", "isa": ""}
    builders = group.metadata_builders
    return {
        "backend": str(group.backend.get_name()),
        "isa": str(getattr(builders[0], "isa", "")) if builders else "",
    }


def _form(tensors: list[Any], is_paged: bool) -> dict[str, list[int]]:
    if is_paged and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        first = tensors[0]  # keys, and then values, as on Ascend
        return {
            "shape": [2, *map(int, first.shape)],
            "stride": [int(first.numel()), *map(int, first.stride())],
        }
    if len(tensors) != 1:  # a state has several, whose axes no schema names
        return {"shape": [], "stride": []}
    return {"shape": [int(n) for n in tensors[0].shape], "stride": [int(n) for n in tensors[0].stride()]}


def _tensors(cache: Any) -> Iterator[Any]:
    if isinstance(cache, list | tuple):
        for entry in cache:
            yield from _tensors(entry)
    elif hasattr(cache, "untyped_storage") and cache.numel():
        yield cache


def _storage(tensor: Any) -> Any:
    return tensor.untyped_storage()


def _rotation(runner: Any) -> dict[str, list[Any]]:
    """Facts of the model's rotary embeddings: whether they pair halves, and the rotary dimension."""
    model = getattr(runner, "model", None)
    modules = model.modules() if model is not None else ()
    found = [m for m in modules if hasattr(m, "is_neox_style") and hasattr(m, "rotary_dim")]
    return {
        "rope_halves": sorted({bool(module.is_neox_style) for module in found}),
        "rope_dims": sorted({int(module.rotary_dim) for module in found}),
    }
