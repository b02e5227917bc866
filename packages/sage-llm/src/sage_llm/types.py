"""What policies see and return: immutable views of requests and instances, a snapshot, and decisions.

Nothing here does I/O, reads a clock or draws random numbers. A policy is a function of these values, so that the same
snapshot always yields the same decision, in the live control plane, in a simulator and in a replay of a receipt.

Units: times in seconds on one monotonic clock, rates in tokens per second, KV in blocks of ``InstanceView.page``
tokens. A *slot* is the position of an instance in ``Snapshot.instances``; a set of instances is an integer *mask* in
which bit ``slot`` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from attrs import field, frozen

__all__ = [
    "Candidate",
    "Decision",
    "DecisionKind",
    "Group",
    "InstanceView",
    "KVView",
    "RefusalReason",
    "RequestKind",
    "RequestView",
    "Role",
    "Snapshot",
    "State",
    "Step",
    "TenantView",
    "slots",
]

RequestKind = Literal["generate", "embed", "rerank"]
Role = Literal["general", "prefill", "decode"]
State = Literal["starting", "ready", "suspect", "probation", "draining", "sleeping", "dead"]
DecisionKind = Literal["dispatch", "wait", "refuse"]
RefusalReason = Literal["", "overloaded", "unavailable", "too_large", "quota", "late", "fault"]


def slots(mask: int) -> Iterator[int]:
    """Yield the slots of a mask in ascending order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@frozen
class RequestView:
    """One request as policies see it; it holds keys and counts, never the prompt.

    Attributes:
        id: id of the request.
        model: id of the model that it is routed to.
        kind: generate, embed or rerank.
        prompt_tokens: number of tokens to compute, including tokens already generated if the request is resumed.
        max_tokens: maximum number of output tokens still to generate; 0 for embed and rerank.
        reserve: number of output tokens to reserve KV for; -1 for ``max_tokens``, which can never be exceeded.
        arrived: time of arrival.
        band: priority band; smaller bands are served first.
        tenant: tenant that sends the request; empty if unknown.
        session: conversation that it belongs to; empty if unknown.
        service_class: name of its service class.
        turn: number of its turn in the session, from 1.
        deadline: time at which the request ends unfinished; None if it has none.
        slo_ttft: target for the time to first token; None if it has none.
        slo_tpot: target for the time per output token; None if it has none.
        out_q50: median of the expected number of output tokens.
        out_q90: 90th percentile of the expected number of output tokens.
        keys: keys of the prompt's full KV blocks, first block first (``sage_llm.index.keys``).
        block: number of tokens per key.
        adapter: LoRA adapter; empty for none.
        chain: chain of calls that it belongs to; empty if none. ``deadline`` is the chain's then.
        chain_step: number of earlier requests of the chain.
        chain_since: arrival of the chain's first request; None without a chain.
        left_s: time from its dispatch to the end of its chain that is rarely exceeded; 0 if unknown.
        expected_s: mean of that time.
        later: models of the chain's usual further steps.
        attempts: number of instances that it was dispatched to before.
        excluded: mask of instances that it must not be dispatched to.
        may_split: whether its prompt may be computed on another instance than its output.
    """

    id: str
    model: str
    kind: RequestKind = "generate"
    prompt_tokens: int = 0
    max_tokens: int = 0
    reserve: int = -1
    arrived: float = 0.0
    band: int = 0
    tenant: str = ""
    session: str = ""
    service_class: str = ""
    turn: int = 1
    deadline: float | None = None
    slo_ttft: float | None = None
    slo_tpot: float | None = None
    out_q50: float = 0.0
    out_q90: float = 0.0
    keys: tuple[int, ...] = ()
    block: int = 1
    adapter: str = ""
    chain: str = ""
    attempts: int = 0
    excluded: int = 0
    may_split: bool = False
    chain_step: int = 0
    chain_since: float | None = None
    left_s: float = 0.0
    expected_s: float = 0.0
    later: tuple[str, ...] = ()

    @property
    def since(self) -> float:
        """Arrival of its chain, or its own."""
        return self.arrived if self.chain_since is None else self.chain_since


@frozen
class Step:
    """Linear model of an engine step: ``base_s + per_prompt·chunk + per_sequence·batch + per_context·context``.

    All four are in seconds (per prompt token, per sequence, per context token). All 0 means unknown.
    """

    base_s: float = 0.0
    per_prompt: float = 0.0
    per_sequence: float = 0.0
    per_context: float = 0.0

    def predict(self, chunk: int, batch: int, context: int) -> float:
        """Return the predicted duration of a step in seconds."""
        return self.base_s + self.per_prompt * chunk + self.per_sequence * batch + self.per_context * context


@frozen
class InstanceView:
    """One instance at the time of the snapshot: its last report plus our own dispatches since then.

    Attributes:
        slot: position in ``Snapshot.instances``.
        instance_id: id from its descriptor.
        generation: generation from its descriptor.
        state: starting, ready, suspect, probation, draining, sleeping or dead; only ready instances and instances
            in probation receive requests.
        role: general, prefill or decode.
        models: models that it serves.
        adapters: LoRA adapters that it has loaded.
        host: name of its machine.
        rate: prefill rate in tokens per second.
        decode_rate: output tokens per second at its present batch; 0 if unknown.
        step: model of its step.
        chunk: prompt tokens that it computes per step.
        queued_tokens: prompt tokens that wait or are being computed on it.
        bound_tokens: prompt tokens of requests that wait in the control plane for this instance.
        running: number of sequences in its batch.
        context_tokens: number of tokens whose KV its batch holds.
        open: number of our requests on it.
        open_limit: maximum number of our requests on it (probation, back-pressure); 0 for no limit.
        max_batch: maximum number of sequences in a batch; 0 if unknown.
        max_context: maximum length of prompt plus output in tokens; 0 if unknown.
        page: tokens per KV block.
        kv_total: total number of KV blocks; 0 if it has no KV cache or does not report it.
        kv_reserved: KV blocks that are reserved by our requests or used by others.
        kv_release: KV blocks released per second by requests that end; 0 if unknown.
        tpot_limit: smallest TPOT target of its running requests in seconds; 0 for none.
        ready_since: time since which it is ready.
        reported_at: time of its last report.
        cost_per_hour: cost of running it; 0 if unknown.
        kv_token_bytes: bytes of KV per token; 0 if unknown.
    """

    slot: int
    instance_id: str
    generation: int = 0
    state: State = "ready"
    role: Role = "general"
    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    host: str = ""
    rate: float = 5000.0
    decode_rate: float = 0.0
    step: Step = Step()
    chunk: int = 2048
    queued_tokens: float = 0.0
    bound_tokens: float = 0.0
    running: int = 0
    context_tokens: int = 0
    open: int = 0
    open_limit: int = 0
    max_batch: int = 0
    max_context: int = 0
    page: int = 32
    kv_total: int = 0
    kv_reserved: int = 0
    kv_release: float = 0.0
    tpot_limit: float = 0.0
    ready_since: float = 0.0
    reported_at: float = 0.0
    cost_per_hour: float = 0.0
    kv_token_bytes: float = 0.0

    @property
    def queue_s(self) -> float:
        """Time until a prompt that is placed now would be started, from the queues alone."""
        return (self.queued_tokens + self.bound_tokens) / self.rate


class KVView(Protocol):
    """Which instances hold a block: a mapping from key to mask. A plain ``dict[int, int]`` is one."""

    def get(self, key: int, default: int, /) -> int: ...


@frozen
class TenantView:
    """A tenant with requests.

    Attributes:
        service: service received so far, in tokens divided by the tenant's weight.
        weight: share of the tenant relative to others.
        open: number of its requests that are dispatched.
        queued: number of its requests that wait in the control plane.
        open_limit: maximum number of dispatched requests; 0 for no limit.
    """

    service: float = 0.0
    weight: float = 1.0
    open: int = 0
    queued: int = 0
    open_limit: int = 0


@frozen
class Group:
    """The instances that can serve one model now.

    Attributes:
        mask: instances that take whole requests.
        least: the least loaded slots, by time in queue: at most 8 per class of speed, where a class spans a factor
            of two of the prefill rate. All slots of ``mask`` if there are at most 16.
        size: number of instances in ``mask``.
        fastest: largest prefill rate of an instance of the model.
        rate: sum of the prefill rates in ``mask``.
        shortest_s: shortest time in queue of an instance in ``mask``.
        waiting_tokens: prompt tokens of requests that wait in the control plane for this model.
        waiting: number of these requests.
        drain: prompt tokens per second of requests that left the queue lately, over the time since it last was empty,
            at most 20 s; 0 while that is shorter than 2 s.
        rho: load of the last 20 s: least work that requests needed, divided by the rate.
        adapters: instances by loaded adapter.
        kv_free: sum of the unreserved KV blocks in ``mask``; -1 if unknown.
        chain_tokens: part of ``waiting_tokens`` that belongs to chains with a deadline, which pass other requests.
        prefill: instances that compute prompts for those in ``mask``.
    """

    mask: int = 0
    least: tuple[int, ...] = ()
    size: int = 0
    fastest: float = 1.0
    rate: float = 0.0
    shortest_s: float = 0.0
    waiting_tokens: float = 0.0
    waiting: int = 0
    drain: float = 0.0
    rho: float = 0.0
    adapters: Mapping[str, int] = field(factory=dict)
    kv_free: int = -1
    prefill: int = 0
    chain_tokens: float = 0.0


@frozen
class Snapshot:
    """The cluster at one moment.

    ``kv``, ``lower``, ``tenants`` and ``places`` refer to live data, so use a snapshot immediately; a receipt keeps
    copies of what the policy has read.

    Attributes:
        now: time of the snapshot.
        instances: instances by slot; None for a free slot.
        groups: instances that can serve a model, by model id.
        kv: holders of blocks in device memory.
        lower: holders of blocks in lower tiers, faster tiers first: memory of the host, disk.
        kv_valid: mask of the instances whose bits in ``kv`` and ``lower`` can be trusted.
        tenants: tenants with requests, by name.
        decisions: number of placement decisions made before this snapshot.
        places: last slot of a session, by session.
    """

    now: float
    instances: tuple[InstanceView | None, ...] = ()
    groups: Mapping[str, Group] = field(factory=dict)
    kv: KVView = field(factory=dict[int, int])
    lower: tuple[KVView, ...] = ()
    kv_valid: int = -1
    tenants: Mapping[str, TenantView] = field(factory=dict)
    decisions: int = 0
    places: Mapping[str, int] = field(factory=dict)


class Candidate(NamedTuple):
    """An instance that a placement policy considered. Candidates compare by cost, then batch, then slot.

    Attributes:
        cost: its cost; the smallest wins. The unit depends on the policy: seconds for ``kv-cost``.
        batch: number of sequences in its batch, or of our requests on it if that is more.
        slot: its slot.
        uncached: prompt tokens that it would compute.
        loaded: prompt tokens that it would load from a lower tier.
        queued: prompt tokens in its queues.
        wait_kv_s: expected time until enough KV blocks are free.
    """

    cost: float
    batch: int
    slot: int
    uncached: int = 0
    loaded: int = 0
    queued: float = 0.0
    wait_kv_s: float = 0.0


@frozen
class Decision:
    """Result of a policy.

    Attributes:
        kind: dispatch (send it to ``slot`` now), wait (``slot`` is chosen, but cannot take it now; -1 if none is
            chosen) or refuse.
        request: id of the request.
        slot: chosen instance; -1 if none.
        policy: name of the policy that decided.
        reason: machine-readable reason of a refusal: overloaded (429), quota (429), late (504), unavailable (503),
            too_large (400) or fault (of the policy, 500).
        message: what was expected, what was seen, and what to do; empty for a dispatch.
        reuse: prompt tokens that need not be computed.
        uncached: prompt tokens that are computed, on ``slot`` or on ``prefill_slot``.
        blocks: KV blocks to reserve on ``slot``.
        predicted_ttft: expected time to first token.
        retry_after: expected time until the request could be accepted; 0 unless refused.
        alpha: weight of computed tokens that was used; 1 for policies without it.
        rho: load that ``alpha`` follows from.
        candidates: at most four candidates, cheapest first.
        prefill_slot: instance that computes the prompt for ``slot``; -1 if ``slot`` computes it.
    """

    kind: DecisionKind
    request: str
    slot: int = -1
    policy: str = ""
    reason: RefusalReason = ""
    message: str = ""
    reuse: int = 0
    uncached: int = 0
    blocks: int = 0
    predicted_ttft: float = 0.0
    retry_after: float = 0.0
    alpha: float = 1.0
    rho: float = 0.0
    candidates: tuple[Candidate, ...] = ()
    prefill_slot: int = -1
