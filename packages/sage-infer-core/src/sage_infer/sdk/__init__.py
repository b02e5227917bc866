"""Helpers for engines and plug-ins: public, and as stable as the contracts."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["FEATURE_OF", "accepted_options", "check_claims", "checksum", "verify"]

if TYPE_CHECKING:
    from sage_infer.sdk.checksums import checksum, verify
    from sage_infer.sdk.claims import FEATURE_OF, accepted_options, check_claims

_HOMES = {"FEATURE_OF": "claims", "accepted_options": "claims", "check_claims": "claims",
          "checksum": "checksums", "verify": "checksums"}  # fmt: skip
__getattr__ = lazy_exports(__name__, _HOMES)
