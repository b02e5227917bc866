"""Validation of values from model files. Error messages name the file and the key."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from sage_infer.errors import ModelFileError, SageInferError

from sage_infer_openvino.models.decoder_weights import DecoderConfig, DenseWeight, Weight

__all__ = ["check_config", "check_finite", "check_kinds", "checked_number", "reading", "special_token_id"]

log = logging.getLogger("sage_infer.openvino")

_LARGEST_FLOAT = float(np.finfo(np.float32).max)  # what is larger is infinite in a graph
_LARGEST_COUNT = 2**31 - 1  # no model has more layers, or larger widths or lengths


def checked_number(
    value: object, where: str, *, gt: float | None = None, ge: float | None = None, whole: bool = False
) -> float:
    """Return a finite number within bounds; ``where`` names file and key.

    Raises:
        ModelFileError: the value is not such a number.
    """
    bound = f" > {gt:g}" if gt is not None else f" ≥ {ge:g}" if ge is not None else ""
    kind = "a whole number" if whole else "a number"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (isinstance(value, int) or math.isfinite(value))
        or (whole and (value != int(value) or abs(value) > _LARGEST_COUNT))
        or (gt is not None and value <= gt)
        or (ge is not None and value < ge)
    ):
        raise ModelFileError(f"{where} is {_shown(value)}, expected {kind}{bound}; the file is damaged")
    return value


def check_kinds(config: Mapping[str, Any], where: str) -> None:
    """Check the types of optional strings, lists and counts of a ``config.json``.

    Raises:
        ModelFileError: a value has another type; the message names the key.
    """
    for key, (kind, fits) in _KINDS.items():
        value = config.get(key)
        if value is not None and not fits(value):
            raise ModelFileError(f"{where}: {key} is {_shown(value)}, expected {kind}; the file is damaged")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(
        ("model_type", "hidden_act", "hidden_activation"), ("a string", lambda value: isinstance(value, str))
    ),
    **dict.fromkeys(("architectures", "layer_types"), ("a list of strings", _are_texts)),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"),
        ("a whole number ≥ 0", _is_count),
    ),
    "no_rope_layers": ("a list of numbers", lambda value: isinstance(value, list)),
}


def special_token_id(value: object, where: str, vocab_size: int) -> int | None:
    """A special token's id. Invalid ids are ignored with a warning, because published files have them."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size:
        return value
    log.warning(
        "%s is %s, which is not an id of a vocabulary of %d; ignored", where, _shown(value), vocab_size
    )
    return None


def check_config(config: DecoderConfig, where: str) -> None:
    """Check that the numbers of a config are consistent.

    Raises:
        ModelFileError: they are not; the message names every inconsistency.
    """
    rotated = config.head_dim if config.rotary_dim is None else config.rotary_dim
    problems = [
        (config.num_heads % config.num_kv_heads, "the number of heads is not a multiple of that of KV heads"),
        (config.head_dim % 2, "the head dimension is odd"),
        (
            rotated % 2 or not 0 < rotated <= config.head_dim,
            "the rotary dimension is odd or exceeds the head dimension",
        ),
        (
            config.rope_factors is not None and len(config.rope_factors) != rotated // 2,
            "there is not one rotary factor per rotated pair",
        ),
        (
            not all(1 / _LARGEST_FLOAT < f <= _LARGEST_FLOAT for f in config.rope_factors or ()),
            "rotary factors must be positive numbers of 32 bits",
        ),
        (any(window < 0 for window in config.windows or ()), "a window is negative"),
    ]
    found = [text for is_wrong, text in problems if is_wrong]
    numbers = {
        "rope_scale": config.rope_scale, "rope_theta": config.rope_theta, "embedding_scale": config.embedding_scale,
        "residual_scale": config.residual_scale, "logit_scale": config.logit_scale,
        "attention_scale": 1.0 if config.attention_scale is None else config.attention_scale,
        "logit_cap": 1.0 if config.logit_cap is None else config.logit_cap,
        "rope_theta of layers with a window": 1.0 if config.local_rope_theta is None else config.local_rope_theta,
    }  # fmt: skip
    found += [
        f"{name} is {value}, which is not a number of 32 bits"
        for name, value in numbers.items()
        if not abs(value) <= _LARGEST_FLOAT
    ]
    if found:
        shape = f"{config.num_heads} heads, {config.num_kv_heads} KV heads of {config.head_dim}, {rotated} rotated"
        raise ModelFileError(f"{where}: {'; '.join(found)} ({shape}); the file is damaged")


def check_finite(weight: Weight, name: str, where: str) -> None:
    """
    Raises:
        ModelFileError: the weight has NaN or infinite values.
    """
    if isinstance(weight, DenseWeight):
        is_finite = _bf16_is_finite(weight.values) if weight.type == "bf16" else _is_finite(weight.values)
    else:
        is_finite = _is_finite(weight.scale) and (weight.minimum is None or _is_finite(weight.minimum))
    if not is_finite:
        raise ModelFileError(f"{where}: weight {name} has values that are not finite numbers; fetch it again")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Convert a library's unexpected errors to errors about the file; a fallback after the explicit checks.

    Raises:
        ModelFileError: in place of any exception except ``SageInferError``, ``OSError`` and ``MemoryError``.
    """
    try:
        yield
    except (SageInferError, OSError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise ModelFileError(
            f"{where}: cannot be read ({reason}); the file is damaged, or its format is unknown"
        ) from error


def _is_finite(values: npt.NDArray[Any]) -> bool:
    return all(bool(np.isfinite(part).all()) for part in _parts(values))


def _bf16_is_finite(bits: npt.NDArray[Any]) -> bool:
    return not any(bool(((part & 0x7F80) == 0x7F80).any()) for part in _parts(bits))


def _parts(values: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
    """Split into parts of a few rows, to limit the memory of masks."""
    if values.ndim < 2:
        return [values]
    step = max(1, (1 << 22) // max(1, int(np.prod(values.shape[1:]))))
    return [values[start : start + step] for start in range(0, len(values), step)]


def _shown(value: object) -> str:
    text = repr(value[:40] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= 60 else text[:59] + "…"
