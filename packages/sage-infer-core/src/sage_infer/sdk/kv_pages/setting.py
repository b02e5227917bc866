"""KV stores as configurations name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_infer.contracts import KVStore
    from sage_infer.schemas import KVCacheSchema

__all__ = ["check_kv_store", "open_kv_store"]


def open_kv_store(
    settings: str | Mapping[str, Any], *, schema: KVCacheSchema, model_id: str, weights_id: str = ""
) -> KVStore:
    """Open the store that a setting names: a store's name, or a mapping with ``store`` and the store's options.

    Args:
        weights_id: ``weights_id_of`` the model's files, for a store with a method ``note_weights``: by it, the KV of
            several engines is known to be of one model.

    Raises:
        BackendUnavailable: unknown, not ready on this machine, or its code failed.
        ConfigError: the setting has another form, or an option that the store does not have.
    """
    from sage_infer.plugins import open_store

    name, options = _parted(settings)
    store = open_store(name, schema=schema, model_id=model_id, **options)
    note = getattr(store, "note_weights", None)
    if note is not None and weights_id:
        note(weights_id)
    return store


def check_kv_store(settings: str | Mapping[str, Any]) -> None:
    """Check, before an engine starts, that the store which a setting names is there.

    Raises:
        BackendUnavailable, ConfigError: as ``open_kv_store``, but for what only the store knows.
    """
    from sage_infer.plugins import find_plugin, require_ready

    require_ready(find_plugin(_parted(settings)[0], "store"))


def _parted(settings: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    from sage_infer.errors import ConfigError

    options = {"store": settings} if isinstance(settings, str) else dict(settings)
    name = options.pop("store", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"a KV store is set by its name, or as {{store: NAME, …}} with the store's options; got {settings!r}"
        )
    return name, options
