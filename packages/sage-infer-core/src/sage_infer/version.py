"""The version of the contract between the core and plug-ins."""

from typing import Final

__all__ = ["CONTRACT_VERSION"]

CONTRACT_VERSION: Final = "1.0"  # major: what a plug-in must match; minor: what has been added since
