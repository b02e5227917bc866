"""Quotas of KV as a tree: tenant, then model, then service class, with reserves that others borrow until they are used.

A quota counts the tokens for which running requests reserve KV: prompt and expected output. Each request counts for
its class, for the model of its tenant, and for its tenant. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import define, field, frozen, validators

from sage_llm.policies.base import tokens_reserved
from sage_llm.types import Decision, Group, InstanceView, RequestView, slots

__all__ = ["ANY", "DEFAULT_CLASS", "Held", "KVQuota", "Path", "QuotaTree", "path_of"]

ANY = "*"
"""Name of the quota of tenants, models or classes that have none of their own."""
DEFAULT_CLASS = "default"
"""Name of the service class of requests that do not name one."""

Path = tuple[str, ...]
"""Tenant, model and class; a shorter one stands for all below it."""
Held = Literal["", "ceiling", "reserved"]
"""Why a request is held back: "" if it is not."""


@frozen(kw_only=True)
class KVQuota:
    """Quota of a tenant, of a model of it, or of a service class of that.

    Attributes:
        reserved: tokens of KV that its requests get when they need them: lent to others meanwhile, and taken back by
            pausing. A tenant's reserve may be used in any model.
        ceiling: maximum number of tokens that its running requests reserve KV for; 0 for no limit.
        borrow: whether its requests may use what is reserved for others, as long as it is not needed.
        parts: quotas of the models of a tenant, or of the classes of a model, by name.
    """

    reserved: int = field(default=0, validator=validators.ge(0))
    ceiling: int = field(default=0, validator=validators.ge(0))
    borrow: bool = True
    parts: Mapping[str, KVQuota] = field(factory=dict)

    def part(self, name: str) -> KVQuota:
        """The quota of a model or class."""
        return self.parts.get(name) or self.parts.get(ANY) or _NONE

    @property
    def least(self) -> int:
        """Its reserve, or the sum of those below it if that is more."""
        return max(self.reserved, sum(part.least for part in self.parts.values()))


_NONE = KVQuota()


@define
class _Open:
    path: Path
    tokens: int
    runs: bool = False
    borrows: bool = False


class QuotaTree:
    """Quotas, and what open requests use of them.

    Args:
        quotas: quotas by tenant; ``"*"`` applies to each tenant without one.
    """

    def __init__(self, quotas: Mapping[str, KVQuota] | None = None) -> None:
        self.quotas = dict(quotas or {})
        self._reserving = {tenant: quota for tenant, quota in self.quotas.items() if quota.least}
        self._open: dict[str, _Open] = {}
        self._running: dict[Path, int] = {}  # tokens
        self._accepted: dict[Path, int] = {}  # those of waiting requests too
        self._waiting: dict[Path, dict[str, RequestView]] = {}  # of tenants with a reserve
        self._taken_back: dict[str, int] = {}  # pauses by the tenant whose reserve returned

    def __bool__(self) -> bool:
        return bool(self.quotas)

    def quota(self, path: Path) -> KVQuota:
        found = self.quotas.get(path[0]) or self.quotas.get(ANY) or _NONE
        for name in path[1:]:
            found = found.part(name)
        return found

    def used(self, path: Path) -> int:
        """Tokens of the running requests below a path."""
        return self._running.get(path, 0)

    # --- events

    def waits(self, request: RequestView) -> None:
        """A request waits for an instance, for the first time or again."""
        if not self.quotas or request.kind != "generate":
            return
        self.leaves(request.id)
        path, tokens = path_of(request), tokens_reserved(request)
        self._open[request.id] = _Open(path, tokens)
        _add(self._accepted, path, tokens)
        if path[0] in self._reserving:
            self._waiting.setdefault(path, {})[request.id] = request

    def runs(self, request: RequestView, *, borrows: bool = False) -> None:
        """A request was dispatched."""
        if request.id not in self._open:
            self.waits(request)
        opened = self._open.get(request.id)
        if opened is not None and not opened.runs:
            opened.runs, opened.borrows = True, borrows
            _add(self._running, opened.path, opened.tokens)
            self._no_longer_waits(request.id, opened.path)

    def leaves(self, request_id: str) -> None:
        """A request has ended, or has left its instance; a second call has no effect."""
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        _add(self._accepted, opened.path, -opened.tokens)
        if opened.runs:
            _add(self._running, opened.path, -opened.tokens)
        self._no_longer_waits(request_id, opened.path)

    def _no_longer_waits(self, request_id: str, path: Path) -> None:
        found = self._waiting.get(path)
        if found is not None and found.pop(request_id, None) is not None and not found:
            del self._waiting[path]

    # --- decisions

    def admit(self, request: RequestView) -> Decision | None:
        """Refuse a request that is larger than a ceiling of it; None if it fits."""
        if not self.quotas or request.kind != "generate":
            return None
        path, tokens = path_of(request), tokens_reserved(request)
        for above in _levels(path):
            ceiling = self.quota(above).ceiling
            if ceiling and tokens > ceiling:
                message = (
                    f"the request reserves KV for {tokens} tokens, the quota of {'/'.join(above)!r} is {ceiling}; "
                    "shorten the prompt or lower max_tokens"
                )
                return Decision("refuse", request.id, policy="quota", reason="too_large", message=message)
        return None

    def is_entitled(self, request: RequestView, *, on_arrival: bool = False) -> bool:
        """Whether all tokens of a request are within a reserve of its tenant that is not used.

        ``on_arrival``: requests of the tenant that wait already use it, too.
        """
        if request.tenant not in self._reserving or request.kind != "generate":
            return False
        path, tokens = path_of(request), tokens_reserved(request)
        used = self._accepted if on_arrival else self._running
        before = self._kept(path[0], path[1], used)
        return before - self._kept(path[0], path[1], _Plus(used, path, tokens)) >= tokens

    def waiting_models(self) -> list[str]:
        """Models with waiting requests of tenants with a reserve."""
        return sorted({path[1] for path in self._waiting})

    def first_entitled(self, model: str) -> Iterator[RequestView]:
        """The oldest waiting request of each path with a reserve that covers it."""
        for path, waiting in list(self._waiting.items()):
            if path[1] == model and waiting:
                first = next(iter(waiting.values()))
                if self.is_entitled(first):
                    yield first

    def held(
        self,
        request: RequestView,
        group: Group,
        instances: Sequence[InstanceView | None],
        *,
        can_pause: bool,
    ) -> Held:
        """Why a request may not be dispatched now.

        It may not exceed a ceiling. It leaves free what is reserved for others and not used, unless it borrows: it may
        do so if it can be paused and continued, and while no request waits that the reserve is for. An idle model
        serves any request, so that reserves above its capacity stop none for ever.
        """
        if not self.quotas or request.kind != "generate":
            return ""
        path, tokens = path_of(request), tokens_reserved(request)
        for above in _levels(path):
            ceiling = self.quota(above).ceiling
            if ceiling and self.used(above) + tokens > ceiling:
                return "ceiling"
        if not self.is_beyond(request, group, instances) or self.is_entitled(request):
            return ""
        borrows = can_pause and all(self.quota(above).borrow for above in _levels(path))
        owners = (first for first in self.first_entitled(request.model) if first.id != request.id)
        return "" if borrows and next(owners, None) is None else "reserved"

    def is_beyond(self, request: RequestView, group: Group, instances: Sequence[InstanceView | None]) -> bool:
        """Whether a request would use KV that is reserved for others."""
        if not self._reserving:
            return False
        views = [view for slot in slots(group.mask) if (view := instances[slot]) is not None]
        if not any(view.open for view in views) or not all(view.kv_total for view in views):
            return False
        path, tokens = path_of(request), tokens_reserved(request)
        used = _Plus(self._running, path, tokens)
        kept = sum(self._kept(tenant, request.model, used) for tenant in self._reserving)
        free = sum(max(view.kv_total - view.kv_reserved, 0) * view.page for view in views)
        return kept > 0 and free - tokens < kept

    def to_pause(self, request: RequestView, running: Iterable[str]) -> Iterator[str]:
        """Of ``running`` requests, those whose KV an entitled request may take, in the same order.

        None of them is within its own reserve, also if all before it in the result are paused.
        """
        used = _Plus(self._running, path_of(request), tokens_reserved(request))
        for name in running:
            opened = self._open.get(name)
            if opened is None or not opened.runs:
                continue
            without = _Plus(used, opened.path, -opened.tokens)
            tenant, model = opened.path[:2]
            before = self._kept(tenant, model, used) if tenant in self._reserving else 0
            after = self._kept(tenant, model, without) if tenant in self._reserving else 0
            if after - before < opened.tokens:
                used = without
                yield name

    def took_back(self, request: RequestView, count: int) -> None:
        """So many requests are paused for a waiting one."""
        if count:
            self._taken_back[request.tenant] = self._taken_back.get(request.tenant, 0) + count

    @property
    def pauses(self) -> int:
        """Number of requests that were paused for the owners of reserves."""
        return sum(self._taken_back.values())

    def _kept(self, tenant: str, model: str, used: Used) -> int:
        """Tokens of a model's KV that are reserved for a tenant and not used by it."""
        quota = self._reserving[tenant]
        part = quota.part(model)
        here = used.get((tenant, model), 0)
        classes = sum(
            max(one.reserved - used.get((tenant, model, name), 0), 0) for name, one in part.parts.items()
        )
        inner = max(part.reserved - here, classes, 0)
        if quota.reserved <= inner:
            return inner
        elsewhere = used.get((tenant,), 0) - here
        for name, other in quota.parts.items():
            if name not in (model, ANY):
                elsewhere += max(other.least - used.get((tenant, name), 0), 0)
        return max(inner, quota.reserved - elsewhere - here)

    # --- what is shown

    def report(self) -> dict[str, Any]:
        """Quotas, use and borrowed tokens by path, as JSON-ready data."""
        paths = {path: None for tenant, quota in self.quotas.items() for path in _paths((tenant,), quota)}
        paths.update({path: None for path in self._accepted if ANY in self.quotas or path[0] in self.quotas})
        borrowed: dict[Path, int] = {}
        for opened in self._open.values():
            if opened.runs and opened.borrows:
                _add(borrowed, opened.path, opened.tokens)
        return {
            "/".join(path): {
                "reserved": self.quota(path).reserved,
                "ceiling": self.quota(path).ceiling,
                "used": self.used(path),
                "waiting": self._accepted.get(path, 0) - self.used(path),
                "borrowed": borrowed.get(path, 0),
                "taken_back": self._taken_back.get(path[0], 0) if len(path) == 1 else 0,
            }
            for path in sorted(paths)
        }


class _Plus:
    """Use of paths, with the tokens of one more request."""

    __slots__ = ("_path", "_tokens", "_used")

    def __init__(self, used: Used, path: Path, tokens: int) -> None:
        self._used, self._path, self._tokens = used, path, tokens

    def get(self, path: Path, default: int, /) -> int:
        found = self._used.get(path, default)
        return found + self._tokens if self._path[: len(path)] == path else found


Used = Mapping[Path, int] | _Plus


def path_of(request: RequestView) -> Path:
    """Tenant, model and class of a request."""
    return request.tenant, request.model, request.service_class or DEFAULT_CLASS


def _levels(path: Path) -> tuple[Path, ...]:
    return tuple(path[: length + 1] for length in range(len(path)))


def _add(used: dict[Path, int], path: Path, tokens: int) -> None:
    for above in _levels(path):
        found = used.get(above, 0) + tokens
        if found:
            used[above] = found
        else:
            used.pop(above, None)


def _paths(path: Path, quota: KVQuota) -> Iterator[Path]:
    yield path
    for name, part in quota.parts.items():
        yield from _paths((*path, name), part)
