"""Frames of the protocol ``sage-replica/1`` between a replica and its clients.

A frame is a length of four bytes (big endian) and a MessagePack array whose first element is the kind of frame. The
server speaks first (``Hello``). Calls are numbered by the client, and so are the slots of the streams that they open;
numbers are never reused on a connection, so frames of an earlier attempt have no receiver. Arguments and results are
MessagePack in a byte string. If they are longer than ``PART_BYTES``, they travel ahead in ``Part`` frames.

Both ends belong to one user, who alone can open the unix socket; at a port, both prove that they know the replica's
token first (``sage_llm.replicas.net.gate``). The receiver checks the types of all fields, and the values of schemas.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
from sage_infer.contracts import EngineStats, Health, KVEvents
from sage_infer.schemas import (
    CapabilityDescriptor,
    FinishReason,
    InstanceDescriptor,
    Timing,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sage_infer.schemas.instance import InstanceState

__all__ = [
    "CARRIED", "MAX_FRAME_BYTES", "PART_BYTES", "PROTOCOL", "Call", "CallCancel", "Credit", "Delta", "End", "Fail",
    "FromClient", "FromServer", "Gauges", "Hello", "KVFrame", "Part", "Ping", "Result", "Step", "StreamCancel",
    "WireError", "carried",
]  # fmt: skip

PROTOCOL = "sage-replica/1"
MAX_FRAME_BYTES = 8 << 20
PART_BYTES = 1 << 20

CARRIED = frozenset({
    "streaming", "chat", "tool_calls", "tokenize", "template_variables", "reasoning", "logprobs", "seed",
    "parallel_sampling", "penalties", "min_p", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "lora",
    "priority", "deadline", "tenant", "session", "service_class", "slo", "chain", "cache_salt", "retention", "trace",
    "multimodal", "prefix_caching", "prefill_decode", "kv_export", "kv_import", "kv_events", "resume", "reports",
    "embed", "rerank",
})  # fmt: skip
"""Features that the frames carry. A client claims those of them that the served backend claims."""


def carried(capability: CapabilityDescriptor) -> CapabilityDescriptor:
    """Return the capability without the features that the frames do not carry."""
    features = tuple(feature for feature in capability.features if feature in CARRIED)
    return attrs.evolve(capability, features=features)


class _Frame(msgspec.Struct, array_like=True, gc=False):
    """Base of all frames: an array with the kind of frame first."""


class WireError(_Frame):
    """An error of ``sage_infer.errors``: its code, its message, and the values of its other fields."""

    code: str
    message: str
    fields: dict[str, Any] = {}


# --- from the server


class Gauges(_Frame, tag=1):
    """Load and health. Sent after a start, periodically, and before the result of a call and the end of a stream."""

    taken_at: float
    state: InstanceState
    health: Health
    stats: EngineStats


class Hello(_Frame, tag=0):
    """First frame of a connection. ``lease_s``: a client that is silent for longer loses its requests."""

    protocol: str
    kind: str
    descriptor: InstanceDescriptor
    gauges: Gauges
    lease_s: float
    window: int
    embedding_dim: int | None = None
    max_length: int | None = None


class Result(_Frame, tag=2):
    """The result of a call."""

    call: int
    value: bytes


class Fail(_Frame, tag=3):
    """The error of a call."""

    call: int
    error: WireError


class Delta(_Frame):
    """A ``TokenDelta`` of the stream in a slot."""

    slot: int
    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class End(_Frame):
    """The end of the stream in a slot; the last message of the slot."""

    slot: int
    reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    error: WireError | None = None


class Step(_Frame, tag=4):
    """Deltas and ends of all streams since the previous step, in order."""

    deltas: list[Delta]
    ends: list[End] = []


class KVFrame(_Frame, tag=5):
    """An event of the KV event stream in a slot."""

    slot: int
    events: KVEvents


# --- from the client


class Call(_Frame, tag=16):
    """Call a method. ``slots`` number the streams that it opens."""

    call: int
    method: str
    arguments: bytes
    slots: tuple[int, ...] = ()


class CallCancel(_Frame, tag=17):
    """The caller no longer waits for a call."""

    call: int


class StreamCancel(_Frame, tag=18):
    """The consumer left a stream."""

    slot: int


class Credit(_Frame, tag=19):
    """The consumer has read ``count`` more items of a stream, so the server may send as many."""

    slot: int
    count: int


class Ping(_Frame, tag=20):
    """Renews the client's lease."""


# --- from both


class Part(_Frame, tag=8):
    """A part of the arguments or the result of a call."""

    call: int
    data: bytes


FromServer = Hello | Gauges | Result | Fail | Step | KVFrame | Part
FromClient = Call | CallCancel | StreamCancel | Credit | Ping | Part
