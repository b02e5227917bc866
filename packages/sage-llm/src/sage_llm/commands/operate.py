"""``sage llm status|top|drain|restart|scale|explain``"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from sage_infer.cli.output import AsJson, print_json

from sage_llm.commands.control import ask
from sage_llm.commands.tables import clear_screen, decision_lines, status_lines

__all__ = ["drain", "explain", "restart", "scale", "status", "top"]

Port = Annotated[
    int | None, typer.Option(help="Port of the server, if several control planes run on this machine.")
]


def status(port: Port = None, as_json: AsJson = False) -> None:
    """Show the instances of the running control plane, their load and what happened to them."""
    found = ask(port, "status")
    if as_json:
        print_json(found)
    else:
        print("\n".join(status_lines(found)))


def top(
    port: Port = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="Number of refreshes; 0 refreshes until Ctrl-C.")] = 0,
) -> None:
    """Show the status again and again."""
    import sys

    shown = 0
    while True:
        lines = status_lines(ask(port, "status"))
        if sys.stdout.isatty():
            clear_screen()
        print("\n".join(lines), flush=True)
        shown += 1
        if shown == count:
            return
        time.sleep(interval)


def drain(
    replica: Annotated[str, typer.Argument(help="Id of the replica, as shown by `sage llm status`.")],
    port: Port = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time for requests to end where they are; then they move."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a replica without an error: its requests end in time, or continue on other instances."""
    found = ask(port, "drain", replica=replica, deadline_s=deadline)
    if as_json:
        print_json(found)
    else:
        print(_drained(found))


def restart(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Replica, as shown by `sage llm status`, or model with all of its replicas; everything by default."
        ),
    ] = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Restart replicas, one after another, without an error for their requests."""
    found = ask(port, "restart", name=name)
    if as_json:
        print_json(found)
    else:
        print("\n".join(map(_drained, found)))


def scale(
    model: Annotated[str, typer.Argument(help="Id or alias of the model.")],
    replicas: Annotated[
        str,
        typer.Argument(
            metavar="N|MIN:MAX",
            help="Number of replicas, or bounds within which it follows the load, perhaps with parameters as for "
            "`sage llm serve --autoscale`.",
        ),
    ],
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Start or drain replicas of a model until there are as many as given, or let their number follow the load."""
    is_number = replicas.isascii() and replicas.isdigit()
    found = ask(port, "scale", model=model, replicas=int(replicas) if is_number else replicas)
    if as_json:
        print_json(found)
    elif is_number:
        changed = ", ".join(found["changed"]) or "nothing to change"
        print(f"{model}: {replicas} replica{'s' if replicas != '1' else ''} ({changed})")
    else:
        print(f"{model}: {found['replicas']} replicas, as the load requires")


def explain(
    request: Annotated[
        str | None, typer.Argument(help="Id of the request, as in the response; the latest one by default.")
    ] = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Show why a request was sent to its instances: what was known, and the cost of each candidate."""
    found = ask(port, "explain", request=request)
    if as_json:
        print_json(found)
    else:
        print("\n".join(decision_lines(found)))


def _drained(result: dict[str, object]) -> str:
    requests = "1 request" if result["open"] == 1 else f"{result['open']} requests"
    return (
        f"{result['replica_id']}: {requests}: {result['ended']} ended, {result['migrated']} migrated; "
        f"stopped in {result['took_s']:.1f} s"
    )
