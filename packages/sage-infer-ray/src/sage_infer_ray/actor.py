"""The actor of one replica, in a process that Ray starts on a node of the cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

from sage_infer.contracts import HOST_VARIABLE
from sage_infer.errors import PluginFailed, SageInferError
from sage_infer.schemas import ReplicaSpec
from sage_infer.schemas.codec import from_dict, to_dict

from sage_infer_ray.serving import Serving

__all__ = ["BEAT_S", "LEASE_S", "ReplicaActor"]

BEAT_S = 1.0
"""Seconds between two calls of ``beat`` by the owner."""

LEASE_S = 5.0
"""Seconds of silence after which another executor can take the replica over."""

_LOOK_S = 0.5
_DETACH = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"


class ReplicaActor:
    """One replica. Its methods run in threads of the actor.

    A new process is empty, also after Ray has restarted it: the owner decides when a replica that has crashed is loaded
    again. A replica whose owner is silent for ``grace_s`` seconds ends.

    Args:
        name: name of the actor.
        grace_s: how long the replica outlives its owner, in seconds; at least the lease.
    """

    def __init__(self, name: str, grace_s: float) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._owner = ""
        self._silent_s = 0.0
        self._serving: Serving | None = None
        threading.Thread(target=self._watch, args=(max(grace_s, LEASE_S),), daemon=True).start()

    def take(self, owner: str) -> dict[str, Any]:
        """Become the owner of the replica.

        Returns:
            ``owned_s``, for how long it still belongs to another owner that is alive; ``spec``, ``descriptor`` and
            ``pid`` if it is loaded; else nothing.
        """
        with self._changed:
            if self._owner not in ("", owner) and self._silent_s < LEASE_S:
                return {"owned_s": LEASE_S - self._silent_s}
            self._owner, self._silent_s = owner, 0.0
            self._changed.notify_all()
            return self._state()

    def load(self, owner: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Start the replica in this process; returns its state, or ``failed`` with code and message of the error."""
        import ray

        with self._changed:
            if self._owner != owner or self._serving is not None:
                return {"failed": ("engine_dead", "another control plane has taken the replica over")}
            context = ray.get_runtime_context()
            os.environ[HOST_VARIABLE] = ray.util.get_node_ip_address()
            accelerators = [
                f"{kind} {number}" for kind, ids in context.get_accelerator_ids().items() for number in ids
            ]
            labels = {"ray_node": context.get_node_id(), "accelerators": ", ".join(accelerators)}
            self._serving = Serving(from_dict(spec, ReplicaSpec), labels)
        try:
            self._serving.until_ready()
        except Exception as error:
            known = isinstance(error, SageInferError)
            message = str(error) if known else f"the backend raised {type(error).__name__}: {error}"
            return {"failed": (getattr(error, "code", PluginFailed.code), message)}
        return self._state()

    def beat(self, owner: str) -> None:
        """Keep the replica."""
        with self._changed:
            if self._owner == owner:
                self._silent_s = 0.0

    def hold(self, owner: str) -> None:
        """Return when the replica has another owner; the call fails when the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._owner != owner)

    def stop(self) -> None:
        """Close the backend."""
        if self._serving is not None:
            self._serving.stop()

    def _state(self) -> dict[str, Any]:
        serving = self._serving
        descriptor = None if serving is None else serving.descriptor
        if serving is None or descriptor is None:
            return {}
        return {"spec": to_dict(serving.spec), "descriptor": to_dict(descriptor), "pid": os.getpid()}

    def _watch(self, grace_s: float) -> None:
        """End the replica when its owner has been silent for too long."""
        before = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            with self._changed:
                self._silent_s += min(now - before, 2 * _LOOK_S)  # less if this process itself stood still
                silent_s = self._silent_s
            before = now
            if silent_s >= grace_s:
                break
        self.stop()
        self._leave()

    def _leave(self) -> None:
        """End this actor, and remove its placement group."""
        import ray

        context, group = ray.get_runtime_context(), ray.util.get_current_placement_group()
        what = [self._name, context.get_actor_id(), group.id.hex()]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        helper = ["-m", "sage_infer_ray.leave", context.gcs_address, context.namespace, *what]
        # Ray kills the children of a process that it ends, so the helper must not be one.
        subprocess.run([sys.executable, "-c", _DETACH, sys.executable, *helper], env=environment, check=False)
