"""Which options of a request reach the backend of a model."""

from __future__ import annotations

from collections.abc import Collection

from attrs import evolve
from sage_infer.schemas import RequestOptions
from sage_infer.sdk.claims import accepted_options

__all__ = ["ADVISORY", "forwarded"]

ADVISORY = ("tenant", "session", "service_class", "chain", "cache_salt", "trace")
"""Options that a front adds to every request, whatever runs it: dropped where the backend does not claim them."""


def forwarded(features: Collection[str], options: RequestOptions | None) -> RequestOptions | None:
    """The options for a backend with these features; None where nothing is left to say.

    Options that are not advisory stay, claimed or not: a backend refuses by name what it does not claim.
    """
    if options is None:
        return None
    accepted = accepted_options(features, options)
    left = evolve(options, **{name: getattr(accepted, name) for name in ADVISORY})
    return None if left == RequestOptions() else left
