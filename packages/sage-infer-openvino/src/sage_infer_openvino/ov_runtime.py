"""The only module that imports OpenVINO.

Other modules of this package use ``from sage_infer_openvino.ov_runtime import ov, ops``, never ``import openvino``.
OpenVINO 2026 imports its model converter, which sends a usage event to Google Analytics unless the user has opted out
(``openvino/tools/ovc/__init__.py``: a missing consent file counts as consent; the event is sent in a thread, and an
identifier is written to ``~/intel``). If the package ``openvino_telemetry`` cannot be imported, the converter uses a
stub without telemetry. So this module blocks that package during the import. It has no effect if the process has
imported ``openvino`` before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

__all__ = ["ops", "ov", "paged_attention_transformation"]

_TELEMETRY = "openvino_telemetry"
_block = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
if _block:
    # None in sys.modules makes an import of this name raise ModuleNotFoundError (see importlib's reference).
    sys.modules[_TELEMETRY] = cast(ModuleType, None)
try:
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import paged_attention_transformation
finally:
    if _block:
        del sys.modules[_TELEMETRY]
