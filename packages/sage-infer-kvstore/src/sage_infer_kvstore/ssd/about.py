"""What the blocks in a store's folder are, for commands that have no engine: their keys say nothing about it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path

from attrs import evolve, frozen
from sage_infer.errors import SchemaError
from sage_infer.schemas import KVCacheSchema
from sage_infer.schemas.codec import from_dict, to_dict

__all__ = ["About"]

_FILE = "about.json"


@frozen
class About:
    """The blocks of one folder.

    Attributes:
        model_id: as of the store.
        weights_id: ``sdk.weights_id_of`` the model's files; empty if no engine has said it.
        schema: schema of the blocks.
        capacity_blocks: capacity of the store that wrote this.
    """

    model_id: str
    weights_id: str
    schema: KVCacheSchema
    capacity_blocks: int

    def write(self, folder: Path) -> None:
        """Write the file whole, or not at all; a known ``weights_id`` stays. Disks that do not take it are ignored."""
        found = self.read(folder)
        new = self
        if found is not None and found.model_id == self.model_id and not self.weights_id:
            new = evolve(self, weights_id=found.weights_id)
        if new == found:
            return
        data = {
            "model_id": new.model_id, "weights_id": new.weights_id, "schema": to_dict(new.schema),
            "capacity_blocks": new.capacity_blocks,
        }  # fmt: skip
        aside = folder / f".{_FILE}.{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            try:
                aside.write_text(json.dumps(data), "utf-8")
                os.replace(aside, folder / _FILE)
            finally:
                aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> About | None:
        """What a folder says; None without a readable file."""
        try:
            data = json.loads((folder / _FILE).read_text("utf-8"))
            schema = from_dict(data["schema"], KVCacheSchema)
            texts = data["model_id"], data["weights_id"], data["capacity_blocks"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SchemaError):
            return None
        model_id, weights_id, capacity = texts
        if not isinstance(model_id, str) or not isinstance(weights_id, str) or type(capacity) is not int:
            return None
        return cls(model_id, weights_id, schema, capacity) if capacity > 0 else None
