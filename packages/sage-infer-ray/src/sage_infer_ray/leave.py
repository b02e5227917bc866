"""End an actor from outside: ``python -m sage_infer_ray.leave ADDRESS NAMESPACE NAME ACTOR_ID GROUP_ID``.

An actor that removes its placement group itself is killed before it can tell Ray not to restart it, and one that ends
first cannot remove the group.
"""

from __future__ import annotations

import logging
import sys

import ray

__all__ = ["main"]


def main(address: str, namespace: str, name: str, actor_id: str, group_id: str) -> None:
    """Kill the actor for good, and remove its placement group; others of the same name are left alone."""
    ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    try:
        actor = ray.get_actor(name)
    except ValueError:
        actor = None
    if actor is not None and actor._actor_id.hex() == actor_id:
        ray.kill(actor, no_restart=True)
    for row in ray.util.placement_group_table().values():
        if row["placement_group_id"] == group_id and row["state"] != "REMOVED":
            ray.util.remove_placement_group(ray.util.get_placement_group(row["name"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
