"""Load of one instance, derived from our own requests on it and corrected by its reports.

Nothing is counted up and down: queue, batch and reserved KV follow from the table of open requests, so that a request
that ends in any way is gone from all of them. What a report shows beyond our own requests belongs to other clients.
"""

from __future__ import annotations

import math

from attrs import define
from sage_infer.schemas import InstanceReport

from sage_llm.registry import Instance
from sage_llm.speeds import Speeds
from sage_llm.types import InstanceView, Step

__all__ = ["InstanceLoad", "OpenRequest"]

_TRANSIT_S = 0.05  # a request dispatched this shortly before a report arrived is probably not in it
_WEIGHT = 0.2  # of a new measurement in a moving mean


@define
class OpenRequest:
    """One of our requests on an instance.

    Attributes:
        at: time of its dispatch.
        tokens: prompt tokens that the instance computes for it.
        context: tokens whose KV it holds once it is running.
        blocks: KV blocks reserved for it.
        tpot: its TPOT target in seconds; 0 for none.
        started: whether its first token has arrived.
        reported: whether a report can have included it.
    """

    at: float
    tokens: float
    context: int
    blocks: int
    tpot: float = 0.0
    started: bool = False
    reported: bool = False


class InstanceLoad:
    """Load of an instance of one generation.

    Args:
        speeds: rates of the instances of its model, which it is one of from now on.
        chunk: prompt tokens per engine step.
    """

    def __init__(self, instance: Instance, *, speeds: Speeds, chunk: int) -> None:
        self.instance = instance
        self.open: dict[str, OpenRequest] = {}
        self.bound: dict[str, float] = {}
        self.report: InstanceReport | None = None
        self.reported_at = 0.0
        schema = instance.descriptor.capability.kv_schema
        self._kv_token_bytes = 0.0 if schema is None else schema.bytes_per_token
        self._chunk = chunk
        self._speeds = speeds
        speeds.add(instance.slot)
        self._rate, self._measurements = 0.0, 0
        self._decode_rate = 0.0
        self._base_s = 0.0
        self._released = 0
        self._release_rate = 0.0
        self._queue = 0.0  # prompt tokens of the report, less those of ours that have started since
        self._own_queue = 0.0  # prompt tokens of ours that no report includes
        self._others = (0, 0, 0)  # running, context and blocks of other clients
        self._running = self._context = self._blocks = 0  # sums over ``open``; recomputed with each report
        self._tpot = 0.0

    # --- our requests

    def dispatched(self, request_id: str, request: OpenRequest) -> None:
        """Add a request to the instance."""
        self.open[request_id] = request
        self._own_queue += request.tokens
        self._blocks += request.blocks

    def first_token(self, request_id: str) -> None:
        """Move a request from the queue to the batch; unknown and started requests are ignored."""
        request = self.open.get(request_id)
        if request is not None and not request.started:
            self._leave_queue(request)
            self._start(request)
            request.started = True

    def computes_itself(self, request_id: str, tokens: float) -> None:
        """A request whose prompt another instance should compute has ``tokens`` to compute here after all."""
        request = self.open.get(request_id)
        if request is not None and not request.started:
            self._leave_queue(request)
            request.tokens, request.reported = tokens, False
            self._own_queue += tokens

    def ended(self, request_id: str) -> bool:
        """Remove a request. Returns whether it was open here."""
        request = self.open.pop(request_id, None)
        if request is None:
            return False
        if not request.started:
            self._leave_queue(request)
        else:
            self._running -= 1
            self._context -= request.context
            if request.tpot and request.tpot == self._tpot:
                self._tpot = min((r.tpot for r in self.open.values() if r.started and r.tpot), default=0.0)
        self._blocks -= request.blocks
        self._released += request.blocks
        return True

    def _start(self, request: OpenRequest) -> None:
        self._running += 1
        self._context += request.context
        if request.tpot and (not self._tpot or request.tpot < self._tpot):
            self._tpot = request.tpot

    def _leave_queue(self, request: OpenRequest) -> None:
        if request.reported:
            self._queue = max(self._queue - request.tokens, 0.0)
        else:
            self._own_queue = max(self._own_queue - request.tokens, 0.0)

    # --- its reports

    def reports(self, report: InstanceReport, now: float) -> None:
        """Take over a report. The caller has checked its generation; an older one than the last is ignored."""
        last, self.report = self.report, report
        if last is not None and report.seq <= last.seq:
            self.report = last
            return
        if last is not None and report.taken_at > last.taken_at:
            self._measure(last, report, report.taken_at - last.taken_at)
        self._queue, self._own_queue = float(report.waiting_prompt_tokens), 0.0
        self._running = self._context = self._blocks = 0
        self._tpot = 0.0
        for request in self.open.values():
            self._blocks += request.blocks
            if request.started:
                self._start(request)
            else:
                request.reported = request.at <= now - _TRANSIT_S
                if not request.reported:
                    self._own_queue += request.tokens
        self._others = (
            max(report.running - self._running, 0),
            max(report.running_context_tokens - self._context, 0),
            max(report.kv_blocks_total - report.kv_blocks_free - self._blocks, 0),
        )
        self.reported_at = now

    def _measure(self, last: InstanceReport, report: InstanceReport, elapsed: float) -> None:
        if last.waiting_prompt_tokens and report.waiting_prompt_tokens:  # busy with prompts all the time
            self.measured_rate((report.prompt_tokens - last.prompt_tokens) / elapsed)
        if last.running and report.running:
            rate = max(report.output_tokens - last.output_tokens, 0) / elapsed
            self._decode_rate += _WEIGHT * (rate - self._decode_rate) if self._decode_rate else rate
        if report.step_s and report.running and not report.waiting_prompt_tokens:
            self._base_s += _WEIGHT * (report.step_s - self._base_s) if self._base_s else report.step_s
        weight = 1.0 - math.exp(-elapsed / 5.0)
        self._release_rate += weight * (self._released / elapsed - self._release_rate)
        self._released = 0

    def measured_rate(self, rate: float) -> None:
        """Take a measured prefill rate in tokens per second into the mean, of which the first ones weigh more."""
        if rate > 0:
            self._measurements += 1
            self._rate += max(_WEIGHT, 1.0 / self._measurements) * (rate - self._rate)
            self._speeds.measured(self.instance.slot, self._rate, self._measurements)

    # --- what policies see

    @property
    def reserved(self) -> int:
        """KV blocks reserved by our requests or used by others."""
        return self._blocks + self._others[2]

    def view(self) -> InstanceView:
        """Return the present load as a view."""
        instance, report = self.instance, self.report
        descriptor = instance.descriptor
        capability = descriptor.capability
        running, context, blocks = self._others
        rate = self._speeds.shown(instance.slot)
        return InstanceView(
            instance.slot,
            descriptor.instance_id,
            descriptor.generation,
            instance.state,
            instance.role,
            descriptor.model_ids,
            descriptor.adapters,
            descriptor.host,
            rate,
            self._decode_rate,
            Step(self._base_s, 1.0 / rate) if self._base_s else _UNKNOWN_STEP,
            self._chunk,
            self._queue + self._own_queue,
            sum(self.bound.values()) if self.bound else 0.0,
            running + self._running,
            context + self._context,
            len(self.open),
            instance.open_limit,
            capability.max_batch_size,
            capability.max_sequence_length,
            capability.kv_schema.page_size if capability.kv_schema is not None else 1,
            report.kv_blocks_total if report is not None else 0,
            blocks + self._blocks,
            self._release_rate,
            self._tpot,
            instance.since,
            self.reported_at,
            descriptor.cost_per_hour or 0.0,
            self._kv_token_bytes,
        )


_UNKNOWN_STEP = Step()
