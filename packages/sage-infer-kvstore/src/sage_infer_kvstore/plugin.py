"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import KVStoreSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_REQUIRES = {"numpy": ">=2.0", "xxhash": ">=3.5"}


@hookimpl
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    return [
        KVStoreSpec(
            name="paged",
            factory="sage_infer_kvstore.paged.store:PagedStore",
            requires=_REQUIRES,
            summary="pages in memory, or in named shared memory that several processes use",
        ),
        KVStoreSpec(
            name="ssd",
            factory="sage_infer_kvstore.ssd.store:SSDStore",
            requires=_REQUIRES,
            summary="blocks in a folder, which survive a restart",
        ),
    ]
