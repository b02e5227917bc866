"""Contracts of reporting: identity and load of instances, extra metrics, cluster state, and loading progress."""

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
    "ModelSettings",
    "ProgressReport",
    "ProgressReporting",
]


@runtime_checkable
class InstanceReporting(Protocol):
    """Additional methods of a backend that claims ``reports``. Both are cheap and do not wait for the engine."""

    def describe(self) -> InstanceDescriptor:
        """Return the identity of this instance; it is the same at each call.

        Raises:
            EngineDead: the backend was not started, or is closed.
        """
        ...

    def report(self) -> InstanceReport:
        """Return the current load; each call increments ``seq`` by one."""
        ...


@frozen(kw_only=True)
class Metric:
    """One Prometheus sample.

    Attributes:
        name: name of the metric; for a counter it ends with ``_total``.
        kind: counter or gauge.
        help: one line about it.
        value: its value now.
        labels: values of the labels by name.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float
    labels: Mapping[str, str] = field(factory=dict)


@runtime_checkable
class MetricsReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` with its own metrics; the gateway adds them to ``/metrics``."""

    def metrics(self) -> Iterable[Metric]: ...


@runtime_checkable
class ModelReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` that knows its models' capabilities."""

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        """Return the capability of a loaded model.

        Raises:
            ModelNotFound: no model has this id or alias.
            BackendUnavailable: the model is not loaded.
        """
        ...


@runtime_checkable
class ModelSettings(Protocol):
    """Additional method of a ``HybridInferenceBackend`` that knows how it runs each model."""

    def get_model_settings(self, model_id: str) -> Mapping[str, Any]:
        """Return backend, options and quantization of a model as JSON-ready data.

        Raises:
            ModelNotFound: no model has this id or alias.
        """
        ...


@runtime_checkable
class ClusterReporting(Protocol):
    """Additional method of a ``HybridInferenceBackend`` that runs several instances; used by the dashboard."""

    def cluster(self) -> Mapping[str, Any]:
        """Return the JSON-ready state of the cluster.

        ``instances`` is a list of ``InstanceReport`` as JSON. The dashboard shows ``replicas``, a list of mappings with
        ``instance`` and ``state``, and optionally ``role``, ``reason``, ``kv_used`` and ``cache_hits`` (shares of 0 to
        1), ``running``, ``queued_tokens``, ``migrated_in``, ``migrated_out`` and ``restarts``; and the counts in
        ``requests``.
        """
        ...


ProgressReport = Callable[[str, float | None], None]
"""``report(stage, share)``: the current stage, and its completed share from 0 to 1, or None if unknown."""


@runtime_checkable
class ProgressReporting(Protocol):
    """Additional method of a backend whose ``start`` reports its progress."""

    def on_progress(self, report: ProgressReport) -> None:
        """Register ``report``, to be called during ``start`` from any thread.

        Call this before ``start``. A later call replaces the callback.
        """
        ...
