"""Quantization profiles from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import QuantizationProfile
from sage_infer.schemas.codec import from_dict

__all__ = ["as_quant_profile"]


def as_quant_profile(source: str | Path | Mapping[str, Any] | QuantizationProfile) -> QuantizationProfile:
    """A profile as it is, from its fields, or from a JSON or YAML file with them.

    Raises:
        InvalidRequest: the file cannot be read, or is neither JSON nor YAML.
        SchemaError: the fields do not fit ``QuantizationProfile``.
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
    return from_dict(data, QuantizationProfile)
