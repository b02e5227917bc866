"""The machine as a whole: what all detectors see of it, merged, described and drawn."""

from sage_infer.hal.machine import detect_machine, find_detectors
from sage_infer.hal.merge import merge_profiles
from sage_infer.hal.recorded import read_recordings

__all__ = ["detect_machine", "find_detectors", "merge_profiles", "read_recordings"]
