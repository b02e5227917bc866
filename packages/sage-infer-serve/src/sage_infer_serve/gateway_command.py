"""What the commands share that run a gateway until they are stopped."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from attrs import evolve
from sage_infer.cli.output import note
from sage_infer.compat import Runner
from sage_infer.config import LoadedConfig

from sage_infer_serve.config import Serve
from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.outputs import survive_closed_outputs
from sage_infer_serve.server import check_settings, listen, new_loop, reserve
from sage_infer_serve.settings import GatewaySettings

__all__ = ["note_stopping", "run_command", "settle"]


def run_command(
    loaded: LoadedConfig,
    serve: Callable[[GatewaySettings, list[APIKey], socket.socket], Coroutine[Any, Any, None]],
    *,
    insecure: bool,
    only_reserve: bool = False,
) -> None:
    """Run ``serve`` with the settings, keys and listening socket of the section ``serve``, until it returns.

    If ``only_reserve``, the socket keeps the port for other processes, which listen there together.

    Raises:
        ConfigError: the settings cannot be used, or the address is in use.
    """
    settings = GatewaySettings.from_config(loaded.section(Serve), insecure=insecure)
    if settings.keys_file is not None:
        settings = evolve(settings, keys_file=str(loaded.path_value("serve.keys_file", settings.keys_file)))
    keys = check_settings(settings)
    survive_closed_outputs()
    # First, to report a port in use before models are loaded.
    listener = reserve(settings) if only_reserve else listen(settings)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("sage_infer.serve").setLevel(logging.INFO)
    provider = None
    if settings.tracing:
        from sage_infer_serve.watch.tracing import Tracing

        provider = Tracing.export_by_otlp()
    try:
        with Runner(loop_factory=new_loop) as runner:
            runner.run(serve(settings, keys, listener))
    finally:
        listener.close()
        if provider is not None:
            provider.shutdown()


def settle() -> None:
    """Make loaded objects permanent: garbage collections that traverse them again would stall every stream."""
    gc.collect()
    gc.freeze()


def note_stopping(open_requests: int) -> None:
    """Note that the server stops, and how many requests it waits for."""
    note(f"stopping: {open_requests} request(s) open; repeat to cancel them" if open_requests else "stopping")
