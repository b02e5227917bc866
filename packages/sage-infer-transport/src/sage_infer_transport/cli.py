"""``sage infer transport …``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from sage_infer_transport.probe import Measurement

__all__ = ["listen", "probe"]

Megabytes = Annotated[int, typer.Option("--megabytes", min=1, max=4096, help="MiB that each round moves.")]


def probe(
    link: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            "-l",
            metavar="shm|file|tcp|ADDRESS",
            help="Link to measure, or the address that `sage infer transport listen` prints; repeatable. "
            "Default: shm, file and tcp on this host.",
        ),
    ] = None,
    megabytes: Megabytes = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds of each preset.")] = 5,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder for the link file, on the disk to measure.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the result as SVG into this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the links from this host and recommend a transport preset for each."""
    import asyncio

    from sage_infer.errors import InvalidRequest

    from sage_infer_transport import probe as probing

    if plot is not None and plot.suffix.lower() != ".svg":
        raise InvalidRequest(f"--plot must end in .svg, the only supported format; got {plot}")
    with progress_bar() as progress:
        measured = asyncio.run(
            probing.measure(
                tuple(dict.fromkeys(link or probing.LINKS)), nbytes=megabytes << 20, rounds=rounds, folder=folder,
                progress=progress,
            )
        )  # fmt: skip
    chosen = probing.recommend(measured)
    if plot is not None:
        _draw(plot, measured, chosen)
    if as_json:
        _print_json(measured, chosen)
        return
    _print(measured, chosen)
    if plot is not None:
        print(f"wrote {plot}")


def listen(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 chooses a free one.")] = 0,
    advertise: Annotated[
        str | None, typer.Option("--advertise", help="Name of this host for others; required with 0.0.0.0.")
    ] = None,
    megabytes: Megabytes = 64,
) -> None:
    """Let another host measure the link to this one, until Ctrl-C."""
    import contextlib
    import signal

    from sage_infer.schemas import TRANSPORT_PRESETS

    from sage_infer_transport.probe import Offer
    from sage_infer_transport.tcp.endpoint import TCPEndpoint

    capacity = (len(TRANSPORT_PRESETS) * megabytes + 1) << 20
    endpoint = TCPEndpoint(host=host, port=port, advertise=advertise, capacity_bytes=capacity)
    try:
        offer = Offer(endpoint, megabytes << 20)
        note("on the other host, run:")
        print(f"sage infer transport probe --link '{offer.uri}'", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        endpoint.close()


def _draw(plot: Path, measured: list[Measurement], chosen: Mapping[str, str]) -> None:
    from sage_infer.errors import InvalidRequest

    from sage_infer_transport.picture import draw

    try:
        plot.write_text(draw(measured, chosen), "utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write {plot}: {error.strerror or error}") from None


def _print(measured: list[Measurement], chosen: Mapping[str, str]) -> None:
    from sage_infer_transport.picture import bar, size

    best = max(m.median_gbs for m in measured)
    rows = [
        (
            m.link if len(m.link) < 16 else "remote host", m.preset, size(m.message_bytes), str(m.in_flight),
            f"{m.median_gbs:.2f} ({min(m.gbs):.2f} to {max(m.gbs):.2f})", f"{1e3 * m.median_first_s:.1f} ms",
            bar(m.median_gbs / best) + (" ← recommended" if chosen[m.link] == m.preset else ""),
        )
        for m in measured
    ]  # fmt: skip
    print_table(("LINK", "PRESET", "MESSAGE", "IN FLIGHT", "GB/s", "FIRST CHUNK", ""), rows)
    print("\nset in sage_infer.yaml: transport: {preset: …}")


def _print_json(measured: list[Measurement], chosen: Mapping[str, str]) -> None:
    from attrs import asdict

    print_json({"measurements": [asdict(m) for m in measured], "recommended": dict(chosen)})
