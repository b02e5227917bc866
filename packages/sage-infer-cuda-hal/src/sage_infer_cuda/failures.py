"""Output of nvidia-smi if it fails, or if a GPU does not respond."""

from __future__ import annotations

import re

from sage_infer_hal.detection import ToolText, redacted

__all__ = ["FAILURE", "LOST", "failure_notes", "is_failure"]

FAILURE = (
    r"NVIDIA-SMI has failed|Failed to initialize NVML|No devices were found|command not found"
    r"|couldn't find libnvidia-ml"
)
"""Messages in place of any output."""

LOST = re.compile(r"\[?(?:GPU is lost|GPU requires reset|ERR!|Unknown Error)\]?\.?", re.IGNORECASE)
"""Text in place of a value of a GPU that fell off the bus or must be reset."""

_FAILED = re.compile(
    r"\s*Unable to (?:determine the device handle for|communicate with) gpu\b.*", re.IGNORECASE
)


def is_failure(line: str) -> bool:
    """Whether the line reports a GPU that does not respond."""
    return _FAILED.fullmatch(line) is not None


def failure_notes(text: ToolText) -> list[str]:
    """Return a note for each GPU that does not respond."""
    return [
        f"a GPU is left out: {redacted(line.text.strip())}" for line in text.lines if is_failure(line.text)
    ]
