"""Replicas that outlived an earlier control plane: taken over where they fit, else killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage_infer.contracts import Executor, ReplicaHandle
from sage_infer.schemas import ReplicaSpec
from sage_infer.schemas.codec import to_dict

from sage_llm.replicas.net.gate import TOKEN_VARIABLE

__all__ = ["adopted", "fits"]


async def adopted(executor: Executor, specs: Sequence[ReplicaSpec]) -> dict[str, ReplicaHandle]:
    """Running replicas of an earlier control plane, by id; those that fit no spec are killed first.

    Only replicas that nobody owns are found, so those of other control planes that run are safe.
    """
    wanted = {spec.replica_id: spec for spec in specs}
    found: dict[str, ReplicaHandle] = {}
    others = []
    for handle in await executor.adopt():
        spec = wanted.get(handle.spec.replica_id)
        if spec is not None and fits(handle, spec):
            found[spec.replica_id] = handle
        else:
            others.append(handle)
    await asyncio.gather(*(handle.kill() for handle in others))  # before new ones need their memory
    return found


def fits(handle: ReplicaHandle, spec: ReplicaSpec) -> bool:
    """Whether a running replica is what ``spec`` would start: the same spec, and model files that are no newer."""
    return _plain(handle.spec) == _plain(spec) and handle.descriptor.generation > _changed_at(
        Path(spec.model.model_path)
    )


def _plain(spec: ReplicaSpec) -> Any:
    """The spec as it is after a round trip through JSON, which turns tuples into lists; without its token."""
    plain = json.loads(json.dumps(to_dict(spec)))
    plain["environment"].pop(TOKEN_VARIABLE, None)
    return plain


def _changed_at(model: Path) -> int:
    """When the model's files were last written, in nanoseconds; 0 if it has none on this machine."""
    files = [model, *model.iterdir()] if model.is_dir() else [model] if model.exists() else []
    return max((file.stat().st_mtime_ns for file in files), default=0)
