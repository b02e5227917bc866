"""Serial numbers, tokens and passwords stay out of what users share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

__all__ = ["redacted", "shareable_environment", "without_secrets"]

_LABELLED = re.compile(
    r"((?:\bS/?N|serial(?:[ _-]?(?:number|no\.?|num))?)\s*[\"']?\s*[:=>]+\s*[\"']?)[\w[][^\s\"'<,|]*",
    re.IGNORECASE,
)
# Letters and digits in one piece, many of them digits: no name of a product, bus id or version looks so.
_BARE = re.compile(r"(?<![0-9A-Za-z.-])(?!0[xX])(?=(?:[A-Za-z]*\d){5})[0-9A-Za-z]{10,}(?![0-9A-Za-z.-])")
_INSTEAD = "[redacted]"

_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASS|PWD$|CREDENTIAL|AUTH|COOKIE|SESSION|SIGNATURE|LICEN[CS]E|WEBHOOK", re.IGNORECASE
)
_SECRETS = (
    re.compile(r"\b(?:hf|ms|gh[pousr]|github_pat|glpat|pypi|npm|xox[abprs])[_-][A-Za-z0-9_-]{10,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{10,}"),
    re.compile(r"\b(?:AKIA|ASIA|LTAI|AKID)[A-Za-z0-9]{12,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"),  # JSON web tokens
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user and password of an address
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
)
_ASSIGNED = re.compile(
    r"(?i)((?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d)\w*[\"']?\s*[:=]\s*[\"']?)[^\s\"',&;}]+"
)


def redacted(text: str) -> str:
    """Return the text with serial numbers, and text that resembles them, replaced."""
    return _BARE.sub(_INSTEAD, _LABELLED.sub(lambda match: match[1] + _INSTEAD, text))


def without_secrets(text: str) -> str:
    """Return the text with tokens, passwords, keys and credentials in addresses replaced."""
    for secret in _SECRETS:
        text = secret.sub(_INSTEAD, text)
    return _ASSIGNED.sub(lambda match: match[1] + _INSTEAD, text)


def shareable_environment(environ: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The variables whose names match a pattern, by name; values of variables named like a secret are replaced."""
    allowed = tuple(patterns)
    return {
        name: _INSTEAD if _SECRET_NAME.search(name) else redacted(without_secrets(value))
        for name, value in sorted(environ.items())
        if any(fnmatchcase(name, pattern) for pattern in allowed)
    }
