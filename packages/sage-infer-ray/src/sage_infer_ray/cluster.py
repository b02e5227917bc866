"""The Ray cluster: the connection to it, actors by name, their placement groups, and what its nodes have.

All functions block for a short time; the executor calls them in threads.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import ReplicaSpec

from sage_infer_ray.actor import ReplicaActor
from sage_infer_ray.signals import kept

__all__ = ["Cluster", "bundles_of", "one_line"]

_PREFIX = "sage/"
_THREADS = 8  # of an actor: one for each of its methods, and some for owners that have died
_CONNECT_S = 5.0
_GIB = 1 << 30
_LEAST_CPUS = 0.001  # a bundle must reserve something


class Cluster:
    """Actors and placement groups of one namespace.

    Args:
        address: ``HOST:PORT`` of the cluster's head, or ``auto`` for the cluster of this machine.
        namespace: the namespace of the actors; control planes with different ones do not see each other's replicas.
    """

    def __init__(self, address: str | None, namespace: str) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or "auto"
        self._namespace = namespace
        if self.address.startswith("ray://"):
            raise UnsupportedFeature(
                f"the executor ray does not connect through Ray Client ({self.address}); run this program on a node of "
                "the cluster, with the HOST:PORT that `ray start --head` printed"
            )
        if self.address != "auto" and not re.fullmatch(r"\S+:\d+", self.address):
            raise ConfigError(f"the address of a Ray cluster must be HOST:PORT or auto, got {self.address!r}")

    def connect(self) -> None:
        """Connect this process to the cluster.

        Raises:
            BackendUnavailable: there is none at the address, or it runs another version of Ray or Python.
        """
        if ray.is_initialized():
            if ray.get_runtime_context().namespace != self._namespace:
                raise BackendUnavailable(
                    f"this process is connected to Ray in the namespace {ray.get_runtime_context().namespace!r}; the "
                    f"executor needs {self._namespace!r}: leave ray.init() to it, or choose the same"
                )
            return
        if self.address != "auto":
            self._knock()
        try:
            # Ray's own handler of SIGTERM calls the previous one, but also aborts the process three seconds later.
            with kept(signal.SIGTERM):
                ray.init(
                    address=self.address,
                    namespace=self._namespace,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except ConnectionError:
            raise self._no_cluster("none runs on this machine") from None
        except Exception as error:
            problem = one_line(error)
            if "mismatch" in problem:
                raise BackendUnavailable(
                    f"the Ray cluster at {self.address} does not fit this program: {problem}; install the same "
                    "versions of Ray and Python here and on every node"
                ) from None
            raise self._no_cluster(problem) from None

    def _knock(self) -> None:
        """Find out quickly whether a server listens, as Ray waits for long and then ends the process."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise self._no_cluster(str(error)) from None

    def _no_cluster(self, problem: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"no Ray cluster at {self.address}: {problem}; start one with `ray start --head`, or name another with "
            "--ray-address HOST:PORT"
        )

    # --- actors

    def ids(self) -> list[str]:
        """The ids of all replicas in the namespace."""
        found = ray.util.list_named_actors(all_namespaces=True)
        return [
            actor["name"].removeprefix(_PREFIX)
            for actor in found
            if actor["namespace"] == self._namespace and actor["name"].startswith(_PREFIX)
        ]

    def find(self, replica_id: str) -> Any | None:
        """The actor of a replica; None if there is none."""
        try:
            return ray.get_actor(_PREFIX + replica_id, namespace=self._namespace)
        except ValueError:
            return None

    def create(self, spec: ReplicaSpec, grace_s: float) -> Any:
        """Create the placement group and the actor of a replica; both wait until a node has room.

        Raises:
            InvalidRequest: another control plane was faster.
        """
        bundles, own = bundles_of(spec)
        name = _PREFIX + spec.replica_id
        group = ray.util.placement_group(
            bundles, strategy="STRICT_PACK", name=f"{name}#{secrets.token_hex(4)}", lifetime="detached"
        )
        strategy = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        try:
            return (
                ray.remote(ReplicaActor)
                .options(
                    name=name,
                    namespace=self._namespace,
                    lifetime="detached",
                    max_restarts=-1,
                    max_concurrency=_THREADS,
                    scheduling_strategy=strategy,
                    **own,
                )
                .remote(name, grace_s)
            )
        except ValueError:
            ray.util.remove_placement_group(group)
            raise InvalidRequest(
                f"replica {spec.replica_id!r} was started by another control plane of the Ray namespace "
                f"{self._namespace!r}; choose another namespace in llm.executor_options"
            ) from None

    def remove(self, replica_id: str) -> bool:
        """Kill the actor of a replica and remove its placement group. Returns whether both are gone."""
        actor = self.find(replica_id)
        if actor is not None:
            ray.kill(actor, no_restart=True)
        groups = self._groups(replica_id)
        for row in groups:
            try:
                ray.util.remove_placement_group(ray.util.get_placement_group(row["name"]))
            except ValueError:
                continue  # removed meanwhile
        return actor is None and not groups

    def is_placed(self, replica_id: str) -> bool:
        """Whether a node has room for the replica, and reserves it."""
        return any(row["state"] == "CREATED" for row in self._groups(replica_id))

    def _groups(self, replica_id: str) -> list[Mapping[str, Any]]:
        rows = ray.util.placement_group_table().values()
        prefix = f"{_PREFIX}{replica_id}#"
        return [row for row in rows if row["name"].startswith(prefix) and row["state"] != "REMOVED"]

    def no_room(self, spec: ReplicaSpec, waited_s: float) -> BackendUnavailable:
        """The error about a replica that no node has room for."""
        asked = _words({name: sum(b.get(name, 0) for b in bundles_of(spec)[0]) for name in _SHOWN})
        nodes = [
            f"{node['NodeManagerAddress']} {_words(node['Resources'])}"
            for node in ray.nodes()
            if node["Alive"]
        ]
        free = _words(ray.available_resources())
        return BackendUnavailable(
            f"replica {spec.replica_id!r} asks for {asked} on one node of the Ray cluster, and none had that free "
            f"within {waited_s:g} s; nodes: {'; '.join(nodes)}; free on all together: {free}; "
            "start fewer replicas, or lower --cpus and --gpus"
        )


def bundles_of(spec: ReplicaSpec) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The bundles of a replica's placement group, and what its actor takes of the first one.

    Up to one accelerator belongs to the actor. Of several, each has a bundle of its own, where the engine starts a
    worker: vLLM finds the placement group in the actor.

    Raises:
        InvalidRequest: more than one accelerator, and a part of one.
    """
    cpus, gpus = max(spec.cpus, _LEAST_CPUS), spec.gpus
    if gpus > 1 and gpus != int(gpus):
        raise InvalidRequest(
            f"gpus of replica {spec.replica_id!r} must be a part of one, or a whole number, got {gpus:g}"
        )
    own: dict[str, float] = {"num_cpus": cpus, "num_gpus": gpus if gpus <= 1 else 0}
    first: dict[str, float] = {"CPU": cpus}
    if spec.memory_gb:
        own["memory"] = first["memory"] = int(spec.memory_gb * _GIB)
    if 0 < gpus <= 1:
        first["GPU"] = gpus
    return [first, *({"GPU": 1.0} for _ in range(int(gpus) if gpus > 1 else 0))], own


_SHOWN = {"CPU": 1, "GPU": 1, "memory": _GIB}


def _words(resources: Mapping[str, float]) -> str:
    shown = [
        ("memory GiB" if name == "memory" else name, resources.get(name, 0) / unit)
        for name, unit in _SHOWN.items()
    ]
    return ", ".join(f"{name} {round(amount, 3):g}" for name, amount in shown)


def one_line(error: BaseException) -> str:
    """The text of an error of Ray, which has several lines, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:500] or type(error).__name__
