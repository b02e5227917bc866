"""The one place that imports OpenVINO.

Every module of this package says ``from sage_infer_openvino.ov_runtime import ov, ops``, and never ``import
openvino``: OpenVINO 2026 imports its model converter when it is imported, and the converter sends a usage
event to Google Analytics unless the user has opted out (``openvino/tools/ovc/__init__.py``: no consent file
counts as consent; the event leaves in a thread, and an identifier is written to ``~/intel``). The converter
falls back to its own do-nothing stub where the package ``openvino_telemetry`` cannot be imported, so that is
what it is shown, for the length of this one import. A process that imported ``openvino`` before us has made
its own choice; nothing is undone then.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

__all__ = ["ops", "ov", "paged_attention_transformation"]

_TELEMETRY = "openvino_telemetry"
_block = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
if _block:
    # None makes the import system raise ModuleNotFoundError for this name (documented in importlib's
    # reference).
    sys.modules[_TELEMETRY] = cast(ModuleType, None)
try:
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import paged_attention_transformation
finally:
    if _block:
        del sys.modules[_TELEMETRY]
