"""Quantization profiles from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sage_infer.errors import InvalidRequest, SchemaError
from sage_infer.schemas import QuantizationProfile
from sage_infer.schemas.codec import from_dict

__all__ = ["QuantProfileLike", "as_quant_profile"]

QuantProfileLike = str | Path | Mapping[str, Any] | QuantizationProfile
"""A profile, its fields, or a file with them."""


def as_quant_profile(source: QuantProfileLike) -> QuantizationProfile:
    """Return a profile unchanged, or build one from its fields or from a JSON or YAML file.

    Raises:
        InvalidRequest: the file cannot be read, or is neither JSON nor YAML.
        SchemaError: the fields do not match ``QuantizationProfile``; the message names the file and each field.
    """
    if isinstance(source, QuantizationProfile):
        return source
    if isinstance(source, Mapping):
        return from_dict(dict(source), QuantizationProfile)
    import yaml

    path = Path(source).expanduser()
    try:
        data = yaml.safe_load(path.read_text("utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the quantization profile {path}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequest(f"the quantization profile {path} is neither JSON nor YAML: {reason}") from None
    try:
        return from_dict(data, QuantizationProfile)
    except SchemaError as error:
        raise SchemaError(f"quantization profile {path}", error.problems) from None
