"""What is simulated: instances, gateways, and the rate at which requests arrive."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen, validators
from sage_infer.errors import InvalidRequest

from sage_llm.scaling.settings import Autoscale
from sage_llm.simulator.engine_model import EngineModel
from sage_llm.simulator.faults import Fault
from sage_llm.simulator.traces import Trace

__all__ = ["Cluster"]


@frozen(kw_only=True)
class Cluster:
    """What is simulated.

    Attributes:
        instances: number of instances.
        model: speed and memory of each instance.
        load: prompt tokens per second that arrive, relative to what the instances compute without any cached prefix.
            Arrival times are scaled to it. 0 keeps the trace's own times.
        routers: number of gateways; requests arrive at them in turn.
        overhead_s: time from the arrival of a request until it can be sent to an instance: HTTP, tokenization.
        report_interval_s: time between two reports of a busy instance.
        report_delay_s: time after which reports and events of instances reach the gateways.
        faults: crashes and stalls.
        autoscale: how the number of instances follows the load; None for the fixed number. ``instances`` is then the
            number that ``load`` refers to.
        start_s: time from the decision to start an instance until it is ready.
        per_host: instances on one machine.
        contention: by which share each further busy instance of a machine lengthens the steps of all of them.
        seed: distinguishes the ids of requests, by which some policies draw.
    """

    instances: int = field(default=8, validator=[validators.ge(1), validators.le(100_000)])
    model: EngineModel = field(factory=EngineModel)
    load: float = field(default=0.0, validator=validators.ge(0))
    routers: int = field(default=1, validator=[validators.ge(1), validators.le(1024)])
    overhead_s: float = field(default=0.0, validator=validators.ge(0))
    report_interval_s: float = field(default=0.1, validator=validators.ge(0))
    report_delay_s: float = field(default=0.0, validator=validators.ge(0))
    faults: tuple[Fault, ...] = ()
    autoscale: Autoscale | None = None
    start_s: float = field(default=30.0, validator=validators.gt(0))
    per_host: int = field(default=1, validator=validators.ge(1))
    contention: float = field(default=0.0, validator=validators.ge(0))
    seed: int = 0

    @property
    def most(self) -> int:
        """Largest number of instances."""
        return self.instances if self.autoscale is None else self.autoscale.affordable

    def named(self) -> dict[str, Any]:
        """Return what distinguishes this cluster from others, by the names that ``--sweep`` takes."""
        return {
            "instances": self.instances,
            "blocks": self.model.blocks,
            "eviction": self.model.eviction,
            "load": self.load,
            "routers": self.routers,
            "report_interval": self.report_interval_s,
            "report_delay": self.report_delay_s,
            "seed": self.seed,
            "autoscale": "off" if self.autoscale is None else self.autoscale.bounds,
        }

    def speed_up(self, trace: Trace) -> float:
        """Return the factor by which a trace runs faster than it was recorded.

        Raises:
            InvalidRequest: the trace takes no time, so that it has no rate.
        """
        if not self.load:
            return 1.0
        if trace.summary.seconds <= 0:
            raise InvalidRequest(
                f"{trace.name}: all requests arrive simultaneously, so that the trace cannot be scaled to a load"
            )
        offered = trace.summary.prompt_tokens / trace.summary.seconds
        return self.load * self.instances * self.model.rate / offered
