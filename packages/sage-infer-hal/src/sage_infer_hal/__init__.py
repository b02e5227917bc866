"""The machine as a whole: detect, merge, describe and draw it; shared code for detectors."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["detect_machine", "find_detectors", "merge_profiles", "read_recordings"]

if TYPE_CHECKING:
    from sage_infer_hal.machine import detect_machine, find_detectors
    from sage_infer_hal.merge import merge_profiles
    from sage_infer_hal.recorded import read_recordings

__getattr__ = lazy_exports(__name__, {
    "detect_machine": "machine", "find_detectors": "machine", "merge_profiles": "merge", "read_recordings": "recorded",
})  # fmt: skip
