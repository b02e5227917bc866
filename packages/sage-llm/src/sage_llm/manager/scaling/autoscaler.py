"""Scaling of the models of a control plane."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from sage_infer.contracts import Metric, ModelStatus
from sage_infer.errors import SageInferError

from sage_llm.manager.calls.questions import BatchCalls
from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.models import ServedModel
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.scaling.model_scaler import ModelScaler
from sage_llm.tasks import Tasks

__all__ = ["Autoscaler"]

log = logging.getLogger(__name__)

_LOOK_S = 0.05


class Autoscaler:
    """Changes the numbers of replicas of the models that have bounds for them.

    Attributes:
        models: scalers by model.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        calls: BatchCalls,
        *,
        restarts: RestartLimits | None = None,
        drain_s: float = 1.0,
    ) -> None:
        self.models: dict[str, ModelScaler] = {}
        self._fleet, self._dispatcher, self._calls = fleet, dispatcher, calls
        self._restarts, self._drain_s = restarts or RestartLimits(), drain_s
        self._tasks = Tasks()
        self._looking: asyncio.Task[None] | None = None

    def add(self, model: Callable[[], ServedModel], start_s: float = 0.0) -> None:
        """Scale a model whose replicas run, or change how it is scaled.

        Args:
            model: returns the model as it is served now; it has bounds.
            start_s: how long its replicas took to start.
        """
        served = model()
        assert served.autoscale is not None
        name = served.descriptor.model_id
        before = self.models.get(name)
        if before is not None:
            before.change(served.autoscale)
        else:
            self.models[name] = ModelScaler(
                model, served.autoscale, self._fleet, self._dispatcher, self._calls,
                restarts=self._restarts, drain_s=self._drain_s, start_s=start_s,
            )  # fmt: skip
        if served.autoscale.least:
            self._fleet.on_demand.discard(name)
        else:
            self._fleet.on_demand.add(name)
        if self._looking is None:
            self._looking = self._tasks.spawn(self._look())

    async def remove(self, model_id: str) -> None:
        """Keep the number of a model's replicas as it is now."""
        self._fleet.on_demand.discard(model_id)
        scaler = self.models.pop(model_id, None)
        if scaler is not None:
            await scaler.stop()

    async def close(self) -> None:
        await self._tasks.cancel()
        for scaler in self.models.values():
            await scaler.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for scaler in list(self.models.values()):
                try:
                    scaler.look(now)
                except Exception:  # without this task, no model would follow its load any more
                    log.exception("scaling of model %s failed", scaler.model_id)

    # --- what others ask

    def rests(self, model_id: str) -> bool:
        """Whether it is no fault that no replica of a model runs."""
        scaler = self.models.get(model_id)
        return scaler is not None and scaler.rests

    def stranded(self, model_id: str, waited_s: float) -> tuple[bool, SageInferError | None]:
        """Whether requests for a model wait for a start, and the error of one that cannot wait longer."""
        scaler = self.models.get(model_id)
        if scaler is None or scaler.settings.least:
            return False, None
        return True, scaler.stranded(waited_s)

    def status(self, status: ModelStatus) -> ModelStatus:
        """The state of a model without a replica is sleeping, until it has one again."""
        if status.instances or status.state not in ("failed", "loading") or not self.rests(status.model_id):
            return status
        stage = "starting a replica" if status.state == "loading" else ""
        return attrs.evolve(status, state="sleeping", reason="", stage=stage)

    def rows(self) -> list[dict[str, Any]]:
        """State of each scaled model as data."""
        return [scaler.row() for scaler in self.models.values()]

    def metrics(self) -> Iterator[Metric]:
        for scaler in self.models.values():
            labels = {"model": scaler.model_id}
            for name, text, value in (
                ("desired", "Replicas that the scaling policy wants.", scaler.desired),
                ("actual", "Replicas that accept requests.", scaler.actual),
            ):
                yield Metric(
                    name=f"sage_llm_scale_{name}_replicas",
                    kind="gauge",
                    help=text,
                    value=value,
                    labels=labels,
                )
            yield Metric(
                name="sage_llm_scale_replica_seconds_total", kind="counter",
                help="Time for which replicas have run, summed over them.", value=scaler.replica_s, labels=labels,
            )  # fmt: skip
            for kind, count in scaler.events.counts.items():
                yield Metric(
                    name="sage_llm_scale_events_total", kind="counter", help="Scaling plans and what became of them.",
                    value=count, labels={**labels, "kind": kind},
                )  # fmt: skip
