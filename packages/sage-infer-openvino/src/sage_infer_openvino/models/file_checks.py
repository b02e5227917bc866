"""Checks of what model files say: each number, id and text is looked at where it is read, and named with its
file.
"""

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

_LARGEST_COUNT = 2**31 - 1  # layers, widths and lengths beyond it are no model's


def checked_number(
    value: object, where: str, *, gt: float | None = None, ge: float | None = None, whole: bool = False
) -> float:
    """A finite number within bounds; ``where`` names file and key.

    Raises:
        ModelFileError: it is not.
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
    """What is read of a ``config.json`` as a text, a list or a small number is one, or is not there.

    Raises:
        ModelFileError: a value is of another kind; it names the key.
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
        ("model_type", "hidden_act", "hidden_activation"), ("a text", lambda value: isinstance(value, str))
    ),
    **dict.fromkeys(("architectures", "layer_types"), ("a list of texts", _are_texts)),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"),
        ("a whole number ≥ 0", _is_count),
    ),
    "no_rope_layers": ("a list of numbers", lambda value: isinstance(value, list)),
}


def special_token_id(value: object, where: str, vocab_size: int) -> int | None:
    """A special token's id; one that cannot be is left out with a warning, as published files have such."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size:
        return value
    log.warning(
        "%s is %s, which is no id of a vocabulary of %d; it is ignored", where, _shown(value), vocab_size
    )
    return None


def check_config(config: DecoderConfig, where: str) -> None:
    """What holds between the numbers of a model.

    Raises:
        ModelFileError: something does not; it names both.
    """
    rotated = config.head_dim if config.rotary_dim is None else config.rotary_dim
    problems = [
        (config.num_heads % config.num_kv_heads, "heads are not a multiple of KV heads"),
        (config.head_dim % 2, "the head's width is odd"),
        (rotated % 2 or not 0 < rotated <= config.head_dim, "rotated values are not an even part of a head"),
        (
            config.rope_factors is not None and len(config.rope_factors) != rotated // 2,
            "rotary factors are not one for each rotated pair",
        ),
        (
            not all(math.isfinite(f) and f > 0 for f in config.rope_factors or ()),
            "rotary factors are not positive numbers",
        ),
        (any(window < 0 for window in config.windows or ()), "a window is negative"),
    ]
    found = [text for is_wrong, text in problems if is_wrong]
    numbers = {
        "rope_scale": config.rope_scale, "rope_theta": config.rope_theta, "embedding_scale": config.embedding_scale,
        "residual_scale": config.residual_scale, "logit_scale": config.logit_scale,
        "attention_scale": 1.0 if config.attention_scale is None else config.attention_scale,
        "logit_cap": 1.0 if config.logit_cap is None else config.logit_cap,
    }  # fmt: skip
    found += [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if found:
        shape = f"{config.num_heads} heads, {config.num_kv_heads} KV heads of {config.head_dim}, {rotated} rotated"
        raise ModelFileError(f"{where}: {'; '.join(found)} ({shape}); the file is damaged")


def check_finite(weight: Weight, name: str, where: str) -> None:
    """
    Raises:
        ModelFileError: the weight has values that are no numbers.
    """
    if isinstance(weight, DenseWeight):
        is_finite = _bf16_is_finite(weight.values) if weight.type == "bf16" else _is_finite(weight.values)
    else:
        is_finite = _is_finite(weight.scale) and (weight.minimum is None or _is_finite(weight.minimum))
    if not is_finite:
        raise ModelFileError(f"{where}: weight {name} has values that are not finite numbers; fetch it again")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Report what a library raises about a file as that file's error: the last resort behind the checks.

    Raises:
        ModelFileError: in place of whatever is no error of ours, nor of the system or of memory.
    """
    try:
        yield
    except (SageInferError, OSError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise ModelFileError(
            f"{where}: cannot be read ({reason}); it is damaged, or of an unknown form"
        ) from error


def _is_finite(values: npt.NDArray[Any]) -> bool:
    return all(bool(np.isfinite(part).all()) for part in _parts(values))


def _bf16_is_finite(bits: npt.NDArray[Any]) -> bool:
    return not any(bool(((part & 0x7F80) == 0x7F80).any()) for part in _parts(bits))


def _parts(values: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
    """So many rows at a time that the masks stay small."""
    if values.ndim < 2:
        return [values]
    step = max(1, (1 << 22) // max(1, int(np.prod(values.shape[1:]))))
    return [values[start : start + step] for start in range(0, len(values), step)]


def _shown(value: object) -> str:
    text = repr(value[:40] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= 60 else text[:59] + "…"
