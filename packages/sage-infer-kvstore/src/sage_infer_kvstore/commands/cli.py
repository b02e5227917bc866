"""``sage infer kv …``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sage_infer.cli.output import AsJson, print_json, print_table, progress_bar
from sage_infer.errors import InvalidRequest, KVCorrupt

if TYPE_CHECKING:
    from sage_infer_kvstore.commands.found import FoundStore

__all__ = ["convert", "purge", "stat", "verify"]

Paths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATH]…", help="Paths of SSD stores.", show_default=False)
]
Arena = Annotated[list[str] | None, typer.Option("--name", "-n", help="Name of a shared arena; repeatable.")]
_BAR = 20


def stat(path: Paths = None, name: Arena = None, as_json: AsJson = False) -> None:
    """Show the shared arenas of this machine, and the SSD stores in the given folders."""
    stores = _chosen(path, name, all_arenas=not path and not name)
    if as_json:
        print_json([_plain(store) for store in stores])
        return
    if not stores:
        print("no shared arena on this machine; name the path of an SSD store to see it")
        return
    columns = ("STORE", "NAME", "KEY SPACE", "BLOCKS", "SIZE", "HITS", "OPEN IN", "FULL")
    print_table(columns, [_row(store) for store in stores])


def verify(
    path: Annotated[list[Path], typer.Argument(help="Paths of SSD stores.")], as_json: AsJson = False
) -> None:
    """Read all blocks of SSD stores and compare them with their checksums."""
    from sage_infer_kvstore.commands import found

    done = []
    with progress_bar() as report:
        for store in _chosen(path, None, all_arenas=False):
            stage = f"reading {store.name}/{store.key_space}"
            report(stage, 0.0 if store.files else 1.0)
            done.append(found.verify(store, lambda share, stage=stage: report(stage, share)))  # type: ignore[misc]
    rows = [(v.store.name, v.store.key_space, str(v.whole), str(v.damaged)) for v in done]
    if as_json:
        print_json([{**_plain(v.store), "whole": v.whole, "damaged": v.damaged} for v in done])
    else:
        print_table(("NAME", "KEY SPACE", "WHOLE", "DAMAGED"), rows)
    damaged = sum(v.damaged for v in done)
    if damaged:
        raise KVCorrupt(
            f"{damaged} blocks do not match their checksum; engines treat them as misses. Check the disk, "
            "and purge the store to free their space"
        )


def purge(path: Paths = None, name: Arena = None) -> None:
    """Remove the blocks of stores that no process has open."""
    from sage_infer_kvstore.commands import found

    if not path and not name:
        raise InvalidRequest("nothing to purge; name a shared arena with --name, or the path of an SSD store")
    for store in _chosen(path, name, all_arenas=False):
        found.purge(store)
        print(
            f"{store.store} {store.name} ({store.key_space}): {store.blocks} blocks, {_size(store.bytes)} freed"
        )


def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder of an SSD store with the blocks.", show_default=False)
    ],
    target: Annotated[
        Path,
        typer.Argument(help="Folder of an SSD store that the other engine has opened.", show_default=False),
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            help="File with one prompt a line: a JSON list of token ids, or an answer with prompt_token_ids.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Convert the stored blocks of prompts to the format of another engine."""
    from attrs import asdict

    from sage_infer_kvstore.commands import convert as converting

    spaces = converting.space_of(source.expanduser()), converting.space_of(target.expanduser())
    wanted = converting.prompts_of(prompts.expanduser())
    with progress_bar() as report:
        done = converting.convert(*spaces, wanted, lambda share: report("converting", share))
    if as_json:
        print_json({"source": str(spaces[0].folder), "target": str(spaces[1].folder), **asdict(done)})
        return
    print(f"from {spaces[0]}\nto   {spaces[1]}")
    print(
        f"{done.written} blocks written ({_size(done.bytes)} in {done.seconds:.1f} s), {done.kept} there already, "
        f"{done.dropped} not taken; blocks of {done.found_prompts} of {done.prompts} prompts found"
    )


def _chosen(paths: list[Path] | None, names: list[str] | None, *, all_arenas: bool) -> list[FoundStore]:
    """
    Raises:
        InvalidRequest: there is no arena of a name, or no store at a path.
    """
    from sage_infer_kvstore.commands import found

    arenas = found.arenas() if names or all_arenas else []
    for name in names or ():
        if name not in {arena.name for arena in arenas}:
            known = ", ".join(sorted({arena.name for arena in arenas})) or "none"
            raise InvalidRequest(f"no shared arena {name!r}; on this machine: {known}")
    stores = [arena for arena in arenas if all_arenas or arena.name in (names or ())]
    for path in paths or ():
        stores += found.folders(path.expanduser())
    return stores


def _row(store: FoundStore) -> tuple[str, ...]:
    share = store.blocks / store.capacity_blocks if store.capacity_blocks else None
    bar = (
        "-"
        if share is None
        else "█" * round(share * _BAR) + "░" * (_BAR - round(share * _BAR)) + f" {share:.0%}"
    )
    looked = store.hits + store.misses
    blocks = f"{store.blocks}" + (f" of {store.capacity_blocks}" if store.capacity_blocks else "")
    return (
        store.store,
        store.name,
        store.key_space,
        blocks,
        _size(store.bytes),
        f"{store.hits / looked:.0%} of {looked}" if looked else "-",
        f"{store.processes}",
        bar,
    )


def _plain(store: FoundStore) -> dict[str, Any]:
    names = ("store", "name", "key_space", "blocks", "capacity_blocks", "block_bytes", "bytes", "processes")
    return {name: getattr(store, name) for name in (*names, "hits", "misses")}


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
