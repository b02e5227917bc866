"""Receipts of placement decisions: what was known, who was considered and why, in a bounded ring.

A receipt can be replayed: it keeps the snapshot with copies of the parts of live tables that the policy has read, so
that the policy decides on it again as it did. Prompts are never kept, only keys and counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from attrs import define, field, frozen
from sage_infer.errors import InvalidRequest

from sage_llm.policies.base import PlacementPolicy
from sage_llm.types import Decision, DecisionKind, KVView, RequestView, Snapshot

__all__ = ["Move", "QuotaNote", "Receipt", "Receipts", "Transfer", "find_receipt"]

_BASE_BYTES = 1024
_KEY_BYTES = 40
_SLOT_BYTES = 8
_EARLIER = 8  # placements and moves of one request


class _Recording:
    """A KV view that notes what is read."""

    __slots__ = ("_get", "read")

    def __init__(self, view: KVView) -> None:
        self._get = view.get
        self.read: dict[int, int] = {}

    def get(self, key: int, default: int, /) -> int:
        found = self.read[key] = self._get(key, default)
        return found


@frozen
class Transfer:
    """The hand-over of a request from the instance that computed its prompt.

    Attributes:
        nbytes: bytes of KV.
        seconds: duration of moving and importing them.
        prefill_s: duration of the prefill there, with its queue and the publication of its KV.
    """

    nbytes: int
    seconds: float
    prefill_s: float


@frozen
class Move:
    """A move of a request that has output to another instance.

    Attributes:
        instance: the instance that it left.
        why: why it left.
        wait_s: time until it was sent to another one.
        restore_s: time from then to its next token, in which its prompt and its output are computed again.
    """

    instance: str
    why: str
    wait_s: float
    restore_s: float


@frozen
class QuotaNote:
    """What a request's KV quota did to it.

    Attributes:
        path: tenant, model and class, with slashes between them.
        kv: where its KV comes from: ``own`` (its reserve), ``free`` (not reserved) or ``borrowed``.
        held_by: why it waited: ``ceiling`` or ``reserved`` (for others); empty if it did not.
        held_s: time from the start of its wait until its tenant's requests were last held back.
        pauses: number of times that it was paused before.
    """

    path: str
    kv: str
    held_by: str
    held_s: float
    pauses: int


@define
class Receipt:
    """One decision and what it was made of.

    Attributes:
        request: the request as the policy saw it.
        snapshot: the cluster as the policy saw it.
        decision: the decision.
        policy: the policy, with its parameters.
        ttft: measured time to first token in seconds; None until it is known.
        cached: prompt tokens that the instance has reported as cached; None until it is known.
        earlier: earlier placements of the same request (retries and migrations), oldest first: the instance's id,
            None if none was chosen, and the kind of the decision.
        transfer: the hand-over between its two instances; None if there was none.
        given_up: why its instance computed the prompt itself although another one was chosen for that.
        quota: its quota of KV; None if none is set.
        prefetch: the instance that was told of it while it waited, and the pages of its KV in the fastest tier there.
        moves: its latest moves after its first token, oldest first.
    """

    request: RequestView
    snapshot: Snapshot
    decision: Decision
    policy: PlacementPolicy
    ttft: float | None = None
    cached: int | None = None
    earlier: list[tuple[str | None, DecisionKind]] = field(factory=list)
    transfer: Transfer | None = None
    given_up: str = ""
    quota: QuotaNote | None = None
    prefetch: tuple[str, int] | None = None
    moves: list[Move] = field(factory=list)

    def replay(self, policy: PlacementPolicy | None = None) -> Decision:
        """Decide again: the same policy decides as it did, another one as it would have."""
        return (policy or self.policy).place(self.request, self.snapshot)

    def instance(self, slot: int) -> str | None:
        """Return the id of the instance that had a slot at the time of the decision."""
        views = self.snapshot.instances
        view = views[slot] if 0 <= slot < len(views) else None
        return view.instance_id if view is not None else None

    def _chain(self) -> dict[str, Any] | None:
        request = self.request
        if not request.chain:
            return None
        left = None if request.deadline is None else request.deadline - self.snapshot.now
        return {
            "name": request.chain,
            "step": request.chain_step,
            "to_deadline_s": left,
            "left_s": request.left_s,
            "later": list(request.later),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON-ready data, for ``sage llm explain``."""
        decision, name = self.decision, self.instance

        return {
            "request_id": self.request.id,
            "model": self.request.model,
            "policy": decision.policy,
            "parameters": {f.name: getattr(self.policy, f.name) for f in _fields(self.policy) if f.init},
            "alpha": decision.alpha,
            "rho": decision.rho,
            "prompt_tokens": self.request.prompt_tokens,
            "chain": self._chain(),
            "waited_s": self.snapshot.now - self.request.arrived,
            "decision": decision.kind,
            "reason": decision.reason or None,
            "message": decision.message or None,
            "instance": name(decision.slot),
            "prefill_instance": name(decision.prefill_slot),
            "transfer": None if self.transfer is None else attrs.asdict(self.transfer),
            "prefill_given_up": self.given_up or None,
            "prefetch": None
            if self.prefetch is None
            else {"instance": self.prefetch[0], "pages": self.prefetch[1]},
            "quota": None if self.quota is None else attrs.asdict(self.quota),
            "reuse_tokens": decision.reuse,
            "cached_tokens": self.cached,
            "ttft_predicted_s": decision.predicted_ttft,
            "ttft_measured_s": self.ttft,
            "candidates": [
                {
                    "instance": name(candidate.slot),
                    "cost": candidate.cost,
                    "uncached_tokens": candidate.uncached,
                    "loaded_tokens": candidate.loaded,
                    "queued_tokens": candidate.queued,
                    "wait_kv_s": candidate.wait_kv_s,
                }
                for candidate in decision.candidates
            ],
            "moves": [attrs.asdict(move) for move in self.moves],
            "earlier": [{"instance": instance, "decision": kind} for instance, kind in self.earlier],
        }


def _fields(policy: PlacementPolicy) -> tuple[attrs.Attribute[Any], ...]:
    cls: type[Any] = type(policy)
    return attrs.fields(cls) if attrs.has(cls) else ()


class Receipts(Mapping[str, Receipt]):
    """The last receipts by request id, bounded by number and by bytes.

    Args:
        max_receipts: maximum number of receipts; 0 keeps none.
        max_bytes: bound of the estimated memory.
    """

    def __init__(self, *, max_receipts: int = 4096, max_bytes: int = 16 << 20) -> None:
        self._max_receipts, self._max_bytes = max_receipts, max_bytes
        self._ring: OrderedDict[str, tuple[Receipt, int]] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._ring)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ring)

    def __getitem__(self, request_id: str) -> Receipt:
        return self._ring[request_id][0]

    def place(self, policy: PlacementPolicy, request: RequestView, snapshot: Snapshot) -> Decision:
        """Let a policy place a request, and keep the receipt unless it has to wait."""
        if not self._max_receipts:
            return policy.place(request, snapshot)
        if not request.keys:  # nothing to look up
            decision = policy.place(request, snapshot)
            kv: dict[int, int] = {}
            lower: tuple[_Recording, ...] = tuple(map(_Recording, snapshot.lower))
        else:
            recording = _Recording(snapshot.kv)
            kv, lower = recording.read, tuple(map(_Recording, snapshot.lower))
            decision = policy.place(
                request, _with(snapshot, recording, lower, snapshot.tenants, snapshot.places)
            )
        if decision.kind == "wait":
            return decision
        tenant, place = snapshot.tenants.get(request.tenant), snapshot.places.get(request.session)
        seen = _with(
            snapshot,
            kv,
            tuple([view.read for view in lower]),
            {} if tenant is None else {request.tenant: tenant},
            {} if place is None else {request.session: place},
        )
        self._keep(Receipt(request, seen, decision, policy))
        return decision

    def _keep(self, receipt: Receipt) -> None:
        request_id = receipt.request.id
        before = self._ring.pop(request_id, None)
        if before is not None:
            self.used_bytes -= before[1]
            last = before[0].decision
            receipt.earlier = [*before[0].earlier, (before[0].instance(last.slot), last.kind)][-_EARLIER:]
            receipt.moves = before[0].moves
        size = (
            _BASE_BYTES
            + _KEY_BYTES * len(receipt.request.keys)
            + _SLOT_BYTES * len(receipt.snapshot.instances)
        )
        self._ring[request_id] = receipt, size
        self.used_bytes += size
        while self._ring and (len(self._ring) > self._max_receipts or self.used_bytes > self._max_bytes):
            self.used_bytes -= self._ring.popitem(last=False)[1][1]

    def first_token(self, request_id: str, ttft: float) -> None:
        """Note a request's measured time to first token."""
        if request_id in self._ring:
            self._ring[request_id][0].ttft = ttft

    def moved(self, request_id: str, move: Move) -> None:
        """Note that a request has continued on another instance."""
        if request_id in self._ring:
            moves = self._ring[request_id][0].moves
            moves.append(move)
            del moves[:-_EARLIER]

    def transferred(self, request_id: str, transfer: Transfer) -> None:
        """Note how a request's KV moved to its instance."""
        if request_id in self._ring:
            self._ring[request_id][0].transfer = transfer

    def given_up(self, request_id: str, why: str) -> None:
        """Note why a request's instance computed the prompt itself."""
        if request_id in self._ring:
            self._ring[request_id][0].given_up = why

    def quota(self, request_id: str, note: QuotaNote) -> None:
        """Note what a request's quota of KV did to it."""
        if request_id in self._ring:
            self._ring[request_id][0].quota = note

    def prefetched(self, request_id: str, instance: str, pages: int) -> None:
        """Note how many pages of a waiting request an instance has moved to its fastest tier."""
        if request_id in self._ring:
            self._ring[request_id][0].prefetch = instance, pages

    def ended(self, request_id: str, cached: int) -> None:
        """Note the cached tokens that a request's usage has reported."""
        if request_id in self._ring:
            self._ring[request_id][0].cached = cached


def _with(
    snapshot: Snapshot,
    kv: KVView,
    lower: tuple[KVView, ...],
    tenants: Mapping[str, Any],
    places: Mapping[str, int],
) -> Snapshot:
    return Snapshot(
        snapshot.now,
        snapshot.instances,
        snapshot.groups,
        kv,
        lower,
        snapshot.kv_valid,
        tenants,
        snapshot.decisions,
        places,
    )


def find_receipt(receipts: Receipts, request: str | None = None) -> Receipt:
    """The receipt of a request, by its id or the start of it; the newest one by default.

    Raises:
        InvalidRequest: there is none.
    """
    names = list(receipts)
    name = names[-1] if request is None and names else _complete(request or "", names)
    if name is None or name not in receipts:
        wanted = "no request has been placed yet" if request is None else f"no receipt of request {request!r}"
        raise InvalidRequest(f"{wanted}; the last {len(receipts)} requests are kept")
    return receipts[name]


def _complete(start: str, known: Sequence[str]) -> str | None:
    """The newest request whose id starts with ``start``; the API shows ids with a prefix such as ``chatcmpl-``."""
    bare = start.partition("-")[2]
    return next((name for name in reversed(known) if bare and name.startswith((start, bare))), None)
