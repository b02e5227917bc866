"""The tree of KV quotas between the queue and the instances, and what it did to each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import ManagedRequest
from sage_llm.quota_tree import Held, KVQuota, Path, QuotaTree, path_of
from sage_llm.receipts import QuotaNote, Receipts
from sage_llm.types import Group, RequestView, Snapshot

__all__ = ["QuotaGate"]


@frozen
class _Hold:
    why: Held
    at: float


class QuotaGate:
    """Holds requests back by their quota.

    Attributes:
        tree: the quotas and their use.
    """

    def __init__(self, quotas: Mapping[str, KVQuota] | None = None) -> None:
        self.tree = QuotaTree(quotas)
        self._holds: dict[Path, _Hold] = {}  # the last ones
        self._since: dict[str, float] = {}  # start of the wait of each request that waits

    def lets(
        self,
        request: ManagedRequest | ManagedCall,
        view: RequestView,
        group: Group,
        snapshot: Snapshot,
        instances: Sequence[LiveInstance],
    ) -> bool:
        """Whether a request may be dispatched now."""
        if not self.tree or not isinstance(request, ManagedRequest):
            return True
        if request.ledger.has_started and not request.is_paused:
            return True  # it lost its instance; its client is being served
        can_pause = request.can_continue and all("resume" in one.features for one in instances)
        why = self.tree.held(view, group, snapshot.instances, can_pause=can_pause)
        if why:  # later requests of the same tenant are held with it, without being looked at
            self._holds[path_of(view)] = _Hold(why, snapshot.now)
        return not why

    def waits(self, view: RequestView, now: float) -> None:
        """A request waits for an instance."""
        if self.tree:
            self.tree.waits(view)
            self._since[view.id] = now

    def dispatched(
        self, request: ManagedRequest | ManagedCall, view: RequestView, snapshot: Snapshot, receipts: Receipts
    ) -> None:
        """A request is dispatched; its receipt says what its quota was."""
        if not self.tree or not isinstance(request, ManagedRequest):
            return
        is_own, group = self.tree.is_entitled(view), snapshot.groups.get(view.model)
        borrows = not is_own and group is not None and self.tree.is_beyond(view, group, snapshot.instances)
        self.tree.runs(view, borrows=borrows)
        since = self._since.pop(view.id, snapshot.now)
        hold = self._holds.get(path_of(view))
        if hold is not None and hold.at < since:
            hold = None
        receipts.quota(
            view.id,
            QuotaNote(
                "/".join(path_of(view)),
                "own" if is_own else "borrowed" if borrows else "free",
                "" if hold is None else hold.why,
                0.0 if hold is None else hold.at - since,
                request.pauses,
            ),
        )

    def left(self, request_id: str) -> None:
        """A request has ended, or has left its instance or the queue."""
        self.tree.leaves(request_id)
        self._since.pop(request_id, None)
        if not self._since:
            self._holds.clear()
