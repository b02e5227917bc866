"""Instances by id, fenced by generation: which of them exist, in what state, and at which slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from attrs import define, field
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import InstanceDescriptor

from sage_llm.types import Role, State

__all__ = ["TRANSITIONS", "Instance", "InstanceRegistry"]

TRANSITIONS: Mapping[State, tuple[State, ...]] = MappingProxyType(
    {
        "starting": ("ready", "probation", "dead"),
        "probation": ("ready", "suspect", "draining", "dead"),
        "ready": ("suspect", "draining", "sleeping", "dead"),
        "suspect": ("ready", "probation", "draining", "dead"),
        "draining": ("ready", "dead"),
        "sleeping": ("ready", "draining", "dead"),
        "dead": (),
    }
)
"""States that may follow a state of one generation. A dead instance returns only with a larger generation."""

_ROLES: Mapping[str, Role] = {"prefill": "prefill", "decode": "decode"}


@define
class Instance:
    """A registered instance.

    Attributes:
        slot: its position in snapshots.
        descriptor: its identity.
        state: its present state.
        since: time since which it is in this state.
        open_limit: maximum number of our requests on it; 0 for no limit.
        reason: why it is in this state, for ``sage llm status``.
    """

    slot: int
    descriptor: InstanceDescriptor
    state: State = "starting"
    since: float = 0.0
    open_limit: int = 0
    reason: str = ""
    role: Role = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.role = _ROLES.get(self.descriptor.capability.instance_type, "general")

    @property
    def instance_id(self) -> str:
        return self.descriptor.instance_id

    @property
    def generation(self) -> int:
        return self.descriptor.generation


class InstanceRegistry:
    """Instances by id and slot. A slot is reused as soon as its instance was removed.

    ``version`` grows with each change, so that readers can cache what they derive.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}
        self._slots: list[Instance | None] = []
        self.version = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._by_id.values())

    def __contains__(self, instance_id: object) -> bool:
        return instance_id in self._by_id

    @property
    def slots(self) -> int:
        """Number of slots, including free ones."""
        return len(self._slots)

    def at(self, slot: int) -> Instance | None:
        """Return the instance at a slot; None if the slot is free."""
        return self._slots[slot] if 0 <= slot < len(self._slots) else None

    def get(self, instance_id: str) -> Instance:
        """Return an instance.

        Raises:
            InvalidRequest: no instance has this id; the message lists the known ones.
        """
        found = self._by_id.get(instance_id)
        if found is None:
            known = ", ".join(sorted(self._by_id)) or "none"
            raise InvalidRequest(f"no instance {instance_id!r}; instances: {known}")
        return found

    def current(self, instance_id: str, generation: int) -> Instance | None:
        """Return the instance if this is its present generation, else None: the message is from an earlier life."""
        found = self._by_id.get(instance_id)
        return found if found is not None and found.descriptor.generation == generation else None

    def add(self, descriptor: InstanceDescriptor, now: float, state: State = "starting") -> Instance:
        """Register an instance, or the next generation of one, which keeps its slot.

        Raises:
            InvalidRequest: the same or a later generation of this id is registered.
        """
        before = self._by_id.get(descriptor.instance_id)
        if before is not None and before.generation >= descriptor.generation:
            raise InvalidRequest(
                f"instance {descriptor.instance_id!r} is registered with generation {before.generation}; a new one "
                f"needs a larger generation than that, not {descriptor.generation}"
            )
        slot = before.slot if before is not None else self._free()
        added = Instance(slot, descriptor, state, now)
        self._by_id[descriptor.instance_id] = self._slots[slot] = added
        self.version += 1
        return added

    def change(self, instance: Instance, state: State, now: float, reason: str = "") -> bool:
        """Change the state of an instance. Returns whether it changed.

        Returns False if this object is no longer registered (removed, or replaced by a later generation), or if it
        is in this state already.

        Raises:
            InvalidRequest: the state cannot follow the present one.
        """
        if self._by_id.get(instance.instance_id) is not instance or instance.state == state:
            return False
        if state not in TRANSITIONS[instance.state]:
            allowed = ", ".join(TRANSITIONS[instance.state]) or "none; it returns with a larger generation"
            raise InvalidRequest(
                f"instance {instance.instance_id!r} is {instance.state} and cannot become {state}; next states: "
                f"{allowed}"
            )
        instance.state, instance.since, instance.reason = state, now, reason
        self.version += 1
        return True

    def limit(self, instance: Instance, open_limit: int) -> None:
        """Limit the number of our requests on an instance (probation, back-pressure); 0 removes the limit."""
        if instance.open_limit != open_limit:
            instance.open_limit = open_limit
            self.version += 1

    def remove(self, instance: Instance) -> None:
        """Forget an instance and free its slot. Has no effect if a later generation is registered."""
        if self._by_id.get(instance.instance_id) is instance:
            del self._by_id[instance.instance_id]
            self._slots[instance.slot] = None
            self.version += 1

    def _free(self) -> int:
        for slot, instance in enumerate(self._slots):
            if instance is None:
                return slot
        self._slots.append(None)
        return len(self._slots) - 1
