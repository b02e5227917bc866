"""``sage infer serve``"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sage_infer.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from sage_infer_serve.http.auth import APIKey
    from sage_infer_serve.settings import GatewaySettings

__all__ = ["serve"]

_GIB = 2**30


def serve(
    llm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[@BACKEND]", help="Generating model; repeatable."),
    ] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@BACKEND]", help="Embedding model; repeatable.")
    ] = None,
    reranker: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@BACKEND]", help="Reranker; repeatable.")
    ] = None,
    quant_profile: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL=]FILE", help="Quantization profile to load a model with; repeatable."),
    ] = None,
    sharing: Annotated[
        str | None, typer.Option(help="How models share a device: time_slice, mps or exclusive.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 selects a free one.")] = None,
    keys_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with API keys, written by `sage infer key add`.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Allow access without API keys, even if others can reach the address."
        ),
    ] = False,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Reject unknown request fields by name.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Origin allowed by CORS; repeatable.")
    ] = None,
    log_requests: Annotated[
        bool | None, typer.Option("--log-requests/--no-log-requests", help="Log one line per request.")
    ] = None,
    tracing: Annotated[
        bool | None, typer.Option("--tracing/--no-tracing", help="OpenTelemetry traces by OTLP.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve models behind an OpenAI-compatible API until stopped.

    Without model flags, serves the models of the configuration: those of its section `serve`, or the default LLM and
    embedding model.
    """
    from sage_infer.config import load_config

    from sage_infer_serve.config import Serve
    from sage_infer_serve.gateway_command import run_command
    from sage_infer_serve.served_models import configured_models, named_models, with_profiles

    flags = {
        "serve.sharing": sharing, "serve.host": host, "serve.port": port, "serve.keys_file": keys_file,
        "serve.strict": strict, "serve.cors_origins": cors_origin, "serve.log_requests": log_requests,
        "serve.tracing": tracing,
    }  # fmt: skip
    names = {key: "--" + key.partition(".")[2].replace("_", "-") for key in flags}
    loaded = load_config(flags=flags, flag_names={**names, "serve.cors_origins": "--cors-origin"})
    models = named_models(llm or (), embedding or (), reranker or ()) or configured_models(loaded)
    if quant_profile:
        models = with_profiles(models, quant_profile)
    sharing_mode = loaded.section(Serve).sharing
    run_command(
        loaded,
        lambda settings, keys, listener: _serve(settings, keys, listener, models, sharing_mode, as_json),
        insecure=insecure,
    )


async def _serve(
    settings: GatewaySettings,
    keys: Sequence[APIKey],
    listener: socket.socket,
    models: dict[str, Any],
    sharing: str,
    as_json: bool,
) -> None:
    from sage_infer_serve.gateway_command import note_stopping, settle
    from sage_infer_serve.server import run_until_signal
    from sage_infer_serve.watch.loading import start_with_progress

    backend = _hybrid_backend({**models, "sharing_mode": sharing})
    try:

        async def load() -> None:
            await start_with_progress(backend)
            settle()

        def on_ready(url: str) -> None:
            if as_json:
                _print_json(backend, url)
            else:
                _print_plan(backend)
                _print_url(backend, url, keys)
            sys.stdout.flush()

        await run_until_signal(
            backend, settings, keys, listener, load=load, on_ready=on_ready, on_drain=note_stopping
        )
    finally:
        await backend.close()


def _hybrid_backend(arguments: dict[str, Any]) -> Any:
    from sage_infer.backends import create_backend, list_backends
    from sage_infer.errors import BackendUnavailable

    if not any(row.name == "hybrid" for row in list_backends()):
        raise BackendUnavailable("serving models requires another wheel: pip install sage-infer-hybrid")
    return create_backend("hybrid", serves="hybrid", **arguments)


def _print_plan(backend: Any) -> None:
    """The memory plan, and memory measured after loading."""
    plan, measured = backend.memory_plan(), backend.measured_bytes()
    rows = [
        [
            share.model_id, share.device, *map(_gib, (share.weights, share.kv, share.activations, share.overhead)),
            _gib(share.total), _gib(measured.get(share.model_id)),
        ]
        for share in plan.shares
    ]  # fmt: skip
    print_table(["MODEL", "DEVICE", "WEIGHTS", "KV", "ACTIVATIONS", "OVERHEAD", "PLANNED", "MEASURED"], rows)
    used = {share.device for share in plan.shares}
    devices = [
        f"{d.name}: {_gib(plan.used(d.name))} of {_gib(d.usable)} GiB" for d in plan.devices if d.name in used
    ]
    print(f"in GiB; {'; '.join(devices)}; sharing: {plan.mode}\n")


def _gib(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / _GIB:.2f}"


def _print_url(backend: Any, url: str, keys: Iterable[APIKey]) -> None:
    names = [key.name for key in keys]
    access = f"API keys: {', '.join(names)}" if names else "no API key required"
    print(f"{url} (dashboard), {url}/v1 (API); {access}; Ctrl-C stops it\n")
    header = ' -H "Authorization: Bearer $KEY"' if names else ""
    data = _example(backend)
    print(f"curl {url}{data[0]}{header} -H 'Content-Type: application/json' \\\n  -d '{data[1]}'")


def _example(backend: Any) -> tuple[str, str]:
    """An example path and body for the first model."""
    from sage_infer.names import GENERATING

    models = backend.list_models()
    model = next((m for m in models if m.model_type in GENERATING), models[0])
    name = model.model_id
    if model.model_type == "embedding":
        return "/v1/embeddings", f'{{"model": "{name}", "input": "Hello"}}'
    if model.model_type == "reranker":
        return "/v1/rerank", f'{{"model": "{name}", "query": "Hello", "documents": ["Good day", "Goodbye"]}}'
    if not backend.get_model_capability(name).supports("chat"):
        return "/v1/completions", f'{{"model": "{name}", "prompt": "Once upon a time"}}'
    return (
        "/v1/chat/completions",
        f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}',
    )


def _print_json(backend: Any, url: str) -> None:
    plan, measured = backend.memory_plan(), backend.measured_bytes()
    models = [
        {
            "id": m.model_id,
            "type": m.model_type,
            "state": backend.get_model_status(m.model_id).state,
            "quant_profile": backend.get_model_capability(m.model_id).quant_profile_id,
        }
        for m in backend.list_models()
    ]
    shares = [
        {
            "model": s.model_id,
            "device": s.device,
            "planned_bytes": s.total,
            "measured_bytes": measured.get(s.model_id),
        }
        for s in plan.shares
    ]
    print_json({"url": url, "models": models, "memory": shares})
