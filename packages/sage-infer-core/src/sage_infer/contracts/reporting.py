"""Contracts of reporting: identity and load of an instance, further metrics, a cluster's state, loading
progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen

from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport

__all__ = [
    "ClusterReporting",
    "InstanceReporting",
    "Metric",
    "MetricsReporting",
    "ModelReporting",
    "ProgressReport",
    "ProgressReporting",
]


@runtime_checkable
class InstanceReporting(Protocol):
    """Additional methods of a backend that claims ``reports``. Both are cheap and do not wait for the
    engine.
    """

    def describe(self) -> InstanceDescriptor:
        """Identity of this instance, the same at each call.

        Raises:
            EngineDead: the backend is not started, or was closed.
        """
        ...

    def report(self) -> InstanceReport:
        """The load now; ``seq`` grows by one with each call."""
        ...


@frozen(kw_only=True)
class Metric:
    """One Prometheus sample."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float
    labels: Mapping[str, str] = field(factory=dict)


@runtime_checkable
class MetricsReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` with metrics of its own; the gateway shows them in
    ``/metrics``.
    """

    def metrics(self) -> Iterable[Metric]: ...


@runtime_checkable
class ModelReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` whose models' capabilities are known."""

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        """Capability of a loaded model.

        Raises:
            ModelNotFound: there is no model of this id or alias.
            BackendUnavailable: it is not loaded.
        """
        ...


@runtime_checkable
class ClusterReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` that runs several instances; the dashboard shows
    it.
    """

    def cluster(self) -> Mapping[str, Any]:
        """JSON-ready state of the cluster; ``instances`` is a list of ``InstanceReport`` in JSON form."""
        ...


ProgressReport = Callable[[str, float | None], None]
"""``report(stage, share)``: the current stage, and its completed share from 0 to 1, or None if unknown."""


@runtime_checkable
class ProgressReporting(Protocol):
    """Additional method of a backend whose ``start`` reports its progress."""

    def on_progress(self, report: ProgressReport) -> None:
        """Call ``report`` during ``start``, from any thread. Set before ``start``; a later call replaces
        it.
        """
        ...
