"""API keys and their limits.

The file has one line per key: ``NAME sha256:HEX`` and limits such as ``requests_per_minute=60 tokens_per_minute=9000
concurrency=4``. Keys are 256 random bits, so a plain digest cannot be reversed; the file alone
grants no access.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import asdict, define, field, frozen
from sage_infer.errors import ConfigError

from sage_infer_serve.http.errors import HTTPError, limited, unauthorized

__all__ = ["APIKey", "KeyLimits", "Keys", "add_key", "new_key", "read_keys", "remove_key"]

PREFIX = "sk-sage-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@frozen(kw_only=True)
class KeyLimits:
    """Limits of one key; None means unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class Allowance:
    """A token bucket: a rate per minute, with a burst of one minute's amount."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    def left(self) -> float:
        """What is in the bucket now."""
        now = self._clock()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._left

    def wait_s(self) -> float:
        """Seconds until the bucket is positive; 0 if it is."""
        left = self.left()
        return 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute

    def take(self, amount: int) -> None:
        """May become negative: the cost of a request is only known at its end."""
        self._left -= amount


@define(eq=False)
class APIKey:
    """A key's name, digest, limits, and their current use.

    Attributes:
        open: requests that have not ended.
        open_elsewhere: those in other processes that serve the same keys.
    """

    name: str
    digest: bytes
    limits: KeyLimits = field(factory=KeyLimits)
    clock: Callable[[], float] = time.monotonic
    open: int = 0
    open_elsewhere: int = 0
    _requests: Allowance | None = field(init=False, default=None)
    _tokens: Allowance | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.limits.requests_per_minute is not None:
            self._requests = Allowance(self.limits.requests_per_minute, self.clock)
        if self.limits.tokens_per_minute is not None:
            self._tokens = Allowance(self.limits.tokens_per_minute, self.clock)

    def cache_salt(self, given: str | None = None) -> str:
        """Cache salt of this key, so that keys do not share cached KV. It is stable across restarts and secret.

        Args:
            given: the client's own salt, which divides the key's KV further.
        """
        salt = hmac.new(self.digest, b"cache salt of " + self.name.encode(), hashlib.sha256)
        if given is not None:
            salt = hmac.new(salt.digest(), given.encode(), hashlib.sha256)
        return salt.hexdigest()

    def admit(self) -> None:
        """Count a request against the limits; ``release`` ends it.

        Raises:
            HTTPError: a limit is reached (429).
        """
        self.check()
        if self._requests is not None:
            self._requests.take(1)
        self.open += 1

    def check(self) -> None:
        """Look at the limits.

        Raises:
            HTTPError: a limit is reached (429).
        """
        concurrency = self.limits.concurrency
        if concurrency is not None and self.open + self.open_elsewhere >= concurrency:
            raise self._limited(f"{self.limits.concurrency} concurrent requests", 1.0)
        for what, allowance in (("requests", self._requests), ("tokens", self._tokens)):
            if allowance is not None and (wait := allowance.wait_s()) > 0:
                raise self._limited(f"{allowance.per_minute} {what} a minute", wait)

    def release(self) -> None:
        self.open -= 1

    @property
    def counts_tokens(self) -> bool:
        return self._tokens is not None

    def charge(self, tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(tokens)

    def _limited(self, limit: str, wait_s: float) -> HTTPError:
        message = f"key {self.name!r} has reached its limit of {limit}; try again in {wait_s:.1f} s"
        return limited(message, wait_s, code="rate_limit_exceeded")


class Keys:
    """The keys that a gateway accepts. Without keys, none is required."""

    def __init__(self, keys: Iterable[APIKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: bytes | None) -> APIKey:
        """The key of an ``Authorization: Bearer …`` header.

        All digests are compared in constant time, so that timing reveals nothing.

        Raises:
            HTTPError: the key is missing or unknown (401).
        """
        if authorization is None:
            raise unauthorized("no API key; send it as 'Authorization: Bearer KEY'")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise unauthorized("the Authorization header must be 'Bearer KEY'")
        digest = hashlib.sha256(token.strip()).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise unauthorized("unknown API key; check it, or ask the operator of this server for one")
        return found


def new_key() -> str:
    """A random key."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[APIKey]:
    """The keys of a file.

    Raises:
        ConfigError: the file cannot be read, or a line is invalid; the message names the line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {path}: {error}") from None
    keys: dict[str, APIKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _parse(words)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
        if key.name in keys:
            raise ConfigError(f"{path}:{number}: the name {key.name!r} is repeated")
        keys[key.name] = key
    return list(keys.values())


def add_key(path: Path, name: str, limits: KeyLimits) -> str:
    """Write a new key's digest to a file readable only by its owner. Returns the key, which is not stored.

    Raises:
        ConfigError: the name exists, or the file cannot be written.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"a key's name consists of letters, digits, '.', '_' and '-', got {name!r}")
    known = read_keys(path) if path.exists() else []
    if any(key.name == name for key in known):
        raise ConfigError(f"{path} already has a key {name!r}; remove it first, or use another name")
    key = new_key()
    digest = hashlib.sha256(key.encode()).digest()
    _write(path, [*known, APIKey(name, digest, limits)])
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file.

    Raises:
        ConfigError: the name is unknown.
    """
    known = read_keys(path)
    left = [key for key in known if key.name != name]
    if len(left) == len(known):
        raise ConfigError(f"{path} has no key {name!r}; it has: {', '.join(k.name for k in known) or 'none'}")
    _write(path, left)


def _parse(words: list[str]) -> APIKey:
    name, *rest = words
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"a key's name consists of letters, digits, '.', '_' and '-', got {name!r}")
    match = _DIGEST.fullmatch(rest[0]) if rest else None
    if match is None:
        raise ValueError(
            "expected NAME sha256:HEX with 64 hex digits; `sage infer key add` writes such lines"
        )
    limits: dict[str, int] = {}
    for word in rest[1:]:
        limit, _, number = word.partition("=")
        if (
            limit not in asdict(KeyLimits())
            or not number.isascii()
            or not number.isdigit()
            or int(number) < 1
        ):
            expected = ", ".join(f"{known}=N" for known in asdict(KeyLimits()))
            raise ValueError(f"a limit must be one of {expected}; got {word!r}")
        limits[limit] = int(number)
    return APIKey(name, bytes.fromhex(match[1]), KeyLimits(**limits))


def _write(path: Path, keys: Iterable[APIKey]) -> None:
    lines = []
    for key in keys:
        limits = [f"{name}={value}" for name, value in asdict(key.limits).items() if value is not None]
        lines.append(" ".join([key.name, f"sha256:{key.digest.hex()}", *limits]))
    text = "# API keys of sage-infer-serve: names, digests, limits. `sage infer key` changes this file.\n"
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        aside.touch(mode=0o600, exist_ok=False)
        aside.write_text(text + "".join(f"{line}\n" for line in lines), "utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the API keys to {path}: {error}") from None
