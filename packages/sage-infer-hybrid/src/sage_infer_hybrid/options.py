"""Filter request options for a model's backend."""

from __future__ import annotations

from collections.abc import Collection

from attrs import evolve
from sage_infer.schemas import RequestOptions
from sage_infer.sdk.claims import accepted_options

__all__ = ["ADVISORY", "forwarded"]

ADVISORY = ("tenant", "session", "service_class", "chain", "cache_salt", "trace")
"""Options that a gateway adds to every request; dropped if the backend does not claim them."""

_NOTHING = RequestOptions()


def forwarded(features: Collection[str], options: RequestOptions | None) -> RequestOptions | None:
    """The options for a backend with these features; None if none remain.

    Other options are kept even if not claimed: the backend rejects them by name.
    """
    if options is None:
        return None
    accepted = accepted_options(features, options)
    left = evolve(options, **{name: getattr(accepted, name) for name in ADVISORY})
    return None if left == _NOTHING else left
