"""``sage llm serve``"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from sage_infer.cli.options import Backend, BackendOptions, KVSchema, QuantProfile
from sage_infer.cli.output import AsJson, print_json

if TYPE_CHECKING:
    import socket

    from sage_infer.schemas import TransportSettings
    from sage_infer_serve.http.auth import APIKey
    from sage_infer_serve.settings import GatewaySettings

    from sage_llm.commands.config import LLM
    from sage_llm.manager.models import ServedModel

__all__ = ["serve"]


def serve(
    backend: Backend = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", metavar="NAME[@BACKEND]", help="LLM; repeatable.")
    ] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@BACKEND]", help="Embedding model; repeatable.")
    ] = None,
    reranker: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@BACKEND]", help="Reranker; repeatable.")
    ] = None,
    replicas: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL=]N", help="Replicas of every LLM, or of one model; repeatable."),
    ] = None,
    autoscale: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]MIN:MAX[,KEY=VALUE…]",
            help="Let the number of replicas of every LLM, or of one model, follow its load; repeatable.",
        ),
    ] = None,
    pd: Annotated[
        str | None,
        typer.Option(
            metavar="P:D", help="Replicas of every LLM that compute prompts, and replicas that generate."
        ),
    ] = None,
    prefill_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Backend option of the replicas that compute prompts; repeatable."
        ),
    ] = None,
    kv_transport: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE…]",
            help="KV transport between them: local, tcp, nixl, store; preset=NAME,chunk_bytes=N.",
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Placement policy, such as kv-cost or round-robin.")
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="OpenAI-compatible server whose models are further replicas; repeatable."
        ),
    ] = None,
    join_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the API key of the --join servers."),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Order of waiting requests, such as balanced, fifo or slo.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where replicas run: local, or ray for a Ray cluster.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Address of the Ray cluster; by default the one of this machine."
        ),
    ] = None,
    cpus: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL=]N", help="CPUs that a replica reserves on the cluster; repeatable."),
    ] = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]N", help="GPUs that a replica reserves there; 0.5 shares one; repeatable."
        ),
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that answer requests at the same address.")
    ] = None,
    kv_schema: KVSchema = None,
    quant_profile: QuantProfile = None,
    option: BackendOptions = None,
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
    as_json: AsJson = False,
) -> None:
    """Serve models on several instances behind one OpenAI-compatible API until stopped.

    Requests continue on another instance if theirs is lost. `sage llm status` shows the instances.
    """
    import attrs
    from sage_infer.config import load_config
    from sage_infer_serve.config import Serve
    from sage_infer_serve.gateway_command import run_command

    from sage_llm.commands.autoscale_flags import at_most, at_start, parse_autoscales, with_autoscales
    from sage_llm.commands.config import LLM
    from sage_llm.commands.executors import LOCAL, check_executor, on_cluster, parse_amounts, with_ray_address
    from sage_llm.commands.gateways import serve_gateways
    from sage_llm.commands.joined import joins, with_joined
    from sage_llm.commands.memory import machine_devices, with_memory
    from sage_llm.commands.pd_flags import (
        check_policy,
        check_store,
        check_transport,
        check_whole,
        parse_pd,
        parse_transport,
        with_pd,
    )
    from sage_llm.commands.served_models import configured, from_flags, parse_replicas, with_cpus
    from sage_llm.commands.serving import with_room
    from sage_llm.replicas.local import SERVER
    from sage_llm.replicas.spans import TRACING_VARIABLE

    moved_by, transport = parse_transport(kv_transport)
    flags = {
        **transport,
        "llm.pd": pd,
        "llm.kv_transport": moved_by,
        "serve.host": host,
        "serve.port": port,
        "serve.keys_file": keys_file,
        "llm.policy": policy,
        "llm.order": order,
        "llm.executor": executor,
        "llm.gateways": gateways,
    }
    names = {key: "--" + key.split(".")[1].replace("_", "-") for key in flags}
    names |= dict.fromkeys(transport, "--kv-transport")
    loaded = load_config(flags=flags, flag_names=names)
    settings = with_ray_address(loaded.section(LLM), ray_address)
    check_executor(settings)
    split = parse_pd(settings.pd)
    if split is not None or settings.kv_transport != LLM().kv_transport:
        check_transport(settings.kv_transport)
    counts = parse_replicas(replicas or [])
    if join and not (model or embedding or reranker or backend):
        models: list[ServedModel] = []
    elif settings.models and not (model or embedding or reranker or backend):
        models = configured(settings.models, counts.get("", settings.replicas), loaded)
    else:
        models = from_flags(
            model or [],
            embedding or [],
            reranker or [],
            backend=backend,
            kv_schema=kv_schema,
            quant_profile=quant_profile,
            options=option or [],
            replicas={"": settings.replicas, **counts},
            loaded=loaded,
        )
    if split is not None:
        chosen = check_policy(settings.policy, is_given=policy is not None)
        settings, models = attrs.evolve(settings, policy=chosen), with_pd(models, split, prefill_option or [])
        check_store(models, settings.kv_transport)
    check_whole(models, [] if split is not None else prefill_option or [])
    models = with_joined(models, joins(join or settings.join, join_key_env))
    models = with_autoscales(
        models, parse_autoscales(autoscale or []), settings.autoscale, counts, gateways=settings.gateways
    )
    models = on_cluster(
        models, settings, cpus=parse_amounts(cpus or [], "--cpus"), gpus=parse_amounts(gpus or [], "--gpus")
    )
    planned = at_most(models)
    if settings.executor == LOCAL:
        # A single replica needs no process of its own, if a single gateway uses it and it is never stopped.
        is_scaled = any(served.autoscale is not None for served in models)
        if sum(served.count for served in planned) > 1 or settings.gateways > 1 or is_scaled:
            planned = [attrs.evolve(served, server=SERVER) for served in planned]
            planned = with_memory(planned, machine_devices())
        if settings.share_cpus:
            planned = with_cpus(planned)
    models = at_start(planned, models)
    logging.getLogger("sage_llm").setLevel(logging.INFO)
    if loaded.section(Serve).tracing:
        models = [
            attrs.evolve(served, environment={**served.environment, TRACING_VARIABLE: "1"})
            if served.server is not None
            else served
            for served in models
        ]
    run_command(
        loaded,
        lambda gateway, keys, listener: (serve_gateways if settings.gateways > 1 else _serve)(
            settings,
            with_room(gateway),
            keys,
            listener,
            models,
            as_json,
            loaded.config.transport.settings(),
        ),
        insecure=insecure,
        only_reserve=settings.gateways > 1,
    )


async def _serve(
    settings: LLM,
    gateway: GatewaySettings,
    keys: Sequence[APIKey],
    listener: socket.socket,
    models: Sequence[ServedModel],
    as_json: bool,
    transport: TransportSettings,
) -> None:
    from sage_infer_serve.gateway_command import note_stopping, settle
    from sage_infer_serve.server import run_until_signal
    from sage_infer_serve.watch.loading import start_with_progress

    from sage_llm.commands.control import ControlServer, control_path
    from sage_llm.commands.executors import make_executor
    from sage_llm.commands.methods import methods
    from sage_llm.commands.serving import manager_settings, print_ready
    from sage_llm.manager.manager import ControlPlaneManager

    manager = ControlPlaneManager(
        models,
        make_executor(settings),
        manager_settings(settings, gateway.target_wait_s, transport, tracing=gateway.tracing),
    )
    address = listener.getsockname()
    control: list[ControlServer] = []
    try:

        async def load() -> None:
            await start_with_progress(manager)
            settle()
            url = f"http://{gateway.host}:{address[1]}"
            control.append(ControlServer(control_path(address[1]), methods(manager, url, settings.drain_s)))
            await control[0].start()

        def on_ready(url: str) -> None:
            if as_json:
                print_json({"url": url, **manager.cluster()})
            else:
                print_ready(manager, url, keys)
            sys.stdout.flush()

        await run_until_signal(
            manager, gateway, keys, listener, load=load, on_ready=on_ready, on_drain=note_stopping
        )
    finally:
        for server in control:
            await server.close()
        await manager.close()
