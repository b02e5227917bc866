"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import CommandSpec, KVStoreSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_GROUP = "KV stores: what is in them."
_COMMANDS = {
    "convert": "Convert the blocks of prompts to the format of another engine.",
    "purge": "Remove the blocks of a store.",
    "stat": "Shared arenas and SSD stores, and how full they are.",
    "verify": "Compare the blocks of SSD stores with their checksums.",
}
_EVICTION = "sage_infer_kvstore.policies.names:policy_of"
_REQUIRES = {"numpy": ">=2.0", "xxhash": ">=3.5"}


@hookimpl
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    return [
        KVStoreSpec(
            name="paged",
            factory="sage_infer_kvstore.paged.store:PagedStore",
            eviction=_EVICTION,
            requires=_REQUIRES,
            summary="pages in memory, or in named shared memory that several processes use",
        ),
        KVStoreSpec(
            name="ssd",
            factory="sage_infer_kvstore.ssd.store:SSDStore",
            requires=_REQUIRES,
            summary="blocks in a folder, which survive a restart",
        ),
        KVStoreSpec(
            name="valkey",
            factory="sage_infer_kvstore.remote.store:ValkeyStore",
            requires={**_REQUIRES, "valkey": ">=6.1"},
            summary="blocks on a Valkey or Redis server, which hosts share",
        ),
        KVStoreSpec(
            name="tiered",
            factory="sage_infer_kvstore.tiers.store:TieredStore",
            eviction=_EVICTION,
            requires=_REQUIRES,
            summary="memory over any other KV store",
        ),
        KVStoreSpec(
            name="quantized",
            factory="sage_infer_kvstore.quantized.store:QuantizedStore",
            requires=_REQUIRES,
            summary="blocks rounded to 8 or 4 bits, in any other KV store",
        ),
    ]


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            path=f"infer kv {name}",
            app=f"sage_infer_kvstore.commands.cli:{name}",
            summary=summary,
            group=_GROUP,
        )
        for name, summary in _COMMANDS.items()
    ]
