"""``sage llm simulate``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json, progress_bar
from sage_infer.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from sage_llm.policies.base import OrderPolicy, PlacementPolicy
    from sage_llm.scaling.settings import Autoscale
    from sage_llm.simulator.bounds import Bounds
    from sage_llm.simulator.cluster import Cluster
    from sage_llm.simulator.metrics import Result
    from sage_llm.simulator.traces import Trace
    from sage_llm.types import Step

__all__ = ["simulate"]

_MAX_BOUND_BLOCKS = 2_000_000  # of a trace, above which the bounds would take too much memory
_DRAM_SPEED, _SSD_SPEED = 4.0, 4 / 3  # of loading, relative to computing: the credits of kv-cost
_ENGINE, _FAULTS, _SCALING = "Engine", "Network and faults", "Scaling"


def simulate(
    trace: Annotated[
        str,
        typer.Argument(
            help="Trace file, perhaps gzipped: Mooncake, Bailian, Azure or BurstGPT; or sessions or rag, synthetic "
            "ones with parameters: sessions:requests=10000,turns=4."
        ),
    ],
    instances: Annotated[int, typer.Option("--instances", "-n", min=1, help="Number of instances.")] = 8,
    compare: Annotated[
        str, typer.Option(metavar="POLICY,POLICY", help="Placement policies, perhaps with parameters.")
    ] = "round-robin,least-tokens,kv-cost",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Run each policy with each value of a parameter, or of load, instances, routers; repeatable.",
        ),
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(
            help="Speed the trace up or down until its prompts are this share of what the instances compute. "
            "[default: as recorded]"
        ),
    ] = None,
    order: Annotated[str | None, typer.Option(help="Order of waiting requests.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of synthetic traces and of what policies draw.")] = 0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with tables and charts.")
    ] = None,
    blocks: Annotated[
        int,
        typer.Option(
            min=1, help="KV blocks per instance, each of the trace's block size.", rich_help_panel=_ENGINE
        ),
    ] = 2000,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=SECONDS,…",
            help="Duration of a step: base_s, per_prompt, per_sequence and per_context.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Fit the duration of a step to a result of `sage infer bench --json FILE`; repeatable.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    calibrate_shared: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Fit --contention to a result of `sage infer bench` that ran simultaneously on all instances of a "
            "host; repeatable.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    per_host: Annotated[
        int,
        typer.Option(min=1, help="Instances on one host, which slow each other.", rich_help_panel=_ENGINE),
    ] = 1,
    contention: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Share by which each further busy instance of a host lengthens a step. [default: 0, or as calibrated]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens per step.", rich_help_panel=_ENGINE)] = 2048,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Running sequences per instance.", rich_help_panel=_ENGINE)
    ] = 1024,
    slowdown: Annotated[
        float,
        typer.Option(
            min=0,
            help="Longest step with prompts beside outputs, relative to one without, as decode_slowdown of openvino; "
            "0 for no limit.",
            rich_help_panel=_ENGINE,
        ),
    ] = 0.0,
    eviction: Annotated[
        str,
        typer.Option(
            metavar="NAME[/NAME]",
            help="Which cached blocks leave first: lru, or a policy of the installed KV stores, such as reuse; one for "
            "all tiers, or one per tier.",
            rich_help_panel=_ENGINE,
        ),
    ] = "lru",
    dram: Annotated[
        int, typer.Option(min=0, help="KV blocks per instance in the host's memory.", rich_help_panel=_ENGINE)
    ] = 0,
    ssd: Annotated[
        int, typer.Option(min=0, help="KV blocks per instance on disk.", rich_help_panel=_ENGINE)
    ] = 0,
    dram_rate: Annotated[
        float | None,
        typer.Option(
            min=1, help="Tokens per second from memory. [default: 4 × compute]", rich_help_panel=_ENGINE
        ),
    ] = None,
    ssd_rate: Annotated[
        float | None,
        typer.Option(
            min=1, help="Tokens per second from disk. [default: 4/3 × compute]", rich_help_panel=_ENGINE
        ),
    ] = None,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Load KV while its request waits.", rich_help_panel=_ENGINE),
    ] = False,
    routers: Annotated[
        int, typer.Option(min=1, help="Gateways; requests arrive in turn.", rich_help_panel=_FAULTS)
    ] = 1,
    overhead: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds of a request before an instance has it. [default: 0, or as calibrated]",
            rich_help_panel=_FAULTS,
        ),
    ] = None,
    report_interval: Annotated[
        float, typer.Option(min=0, help="Seconds between reports of an instance.", rich_help_panel=_FAULTS)
    ] = 0.1,
    report_delay: Annotated[
        float, typer.Option(min=0, help="Seconds until reports arrive.", rich_help_panel=_FAULTS)
    ] = 0.0,
    crash: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLOT@TIME[:RESTART]",
            help="An instance loses everything, and is ready again after RESTART seconds (30); repeatable.",
            rich_help_panel=_FAULTS,
        ),
    ] = None,
    stall: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLOT@TIME:SECONDS", help="An instance does nothing; repeatable.", rich_help_panel=_FAULTS
        ),
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:MAX[,KEY=VALUE…]",
            help="Run each policy also with a number of instances that follows the load, as of `sage llm serve`.",
            rich_help_panel=_SCALING,
        ),
    ] = None,
    start_time: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time to start an instance.", rich_help_panel=_SCALING)
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Replay a trace of requests on simulated instances and compare placement policies.

    The policies, queues and snapshots are those of `sage llm serve`; only engines and time are simulated.
    """
    from attrs import evolve

    from sage_llm import policies
    from sage_llm.scaling.settings import parse_autoscale
    from sage_llm.simulator.calibrate import calibrate as fit
    from sage_llm.simulator.calibrate import contention as fit_contention
    from sage_llm.simulator.cluster import Cluster
    from sage_llm.simulator.engine_model import EngineModel
    from sage_llm.simulator.eviction import check_eviction
    from sage_llm.simulator.faults import parse_crash, parse_stall
    from sage_llm.simulator.traces import open_trace
    from sage_llm.simulator.variants import policies_of
    from sage_llm.simulator.workload import synthetic

    chosen, ordered = policies_of(compare), policies.order(order)
    if load is not None and not 0 < load <= 100:
        raise InvalidRequest(f"--load must be above 0 and at most 100, such as 0.95; got {load:g}")
    if html is not None and not html.absolute().parent.is_dir():
        raise InvalidRequest(f"{html}: folder {html.absolute().parent} does not exist")
    if ssd and not dram:
        raise InvalidRequest("--ssd needs --dram: blocks reach the disk from the host's memory")
    if calibrate and step:
        raise InvalidRequest("--calibrate and --step are mutually exclusive; use one of them")
    if 0 < slowdown <= 1:
        raise InvalidRequest(f"--slowdown must be above 1, such as 2.5, or 0 for no limit; got {slowdown:g}")
    check_eviction(eviction)
    if (contention or calibrate_shared) and per_host < 2:
        raise InvalidRequest(
            "--contention and --calibrate-shared need the instances that share a host: --per-host 2"
        )
    if calibrate_shared and not calibrate:
        raise InvalidRequest("--calibrate-shared needs --calibrate with runs on one instance alone")
    calibration = fit(calibrate, chunk) if calibrate else None
    if calibration is not None and calibrate_shared:
        found = fit_contention(calibrate_shared, calibration, chunk, per_host)
        calibration = evolve(calibration, contention=found)
        contention = found if contention is None else contention
    if overhead is None:
        overhead = calibration.overhead_s if calibration is not None else 0.0
    timed = calibration.step if calibration is not None else _step(step or "")
    bounds = None if autoscale is None else parse_autoscale(autoscale)
    if bounds is not None and (crash or stall):
        raise InvalidRequest("--autoscale cannot be combined with --crash and --stall; leave one of them out")
    if not 0 < start_time < 1e6:
        raise InvalidRequest(f"--start-time must be above 0 s, got {start_time:g}")
    tiers = [(n, r) for n, r in ((dram, dram_rate or _DRAM_SPEED / timed.per_prompt),
                                 (ssd, ssd_rate or _SSD_SPEED / timed.per_prompt)) if n]  # fmt: skip
    model = EngineModel(
        step=timed,
        chunk=chunk,
        max_batch=max_batch,
        slowdown=slowdown,
        eviction=eviction,
        blocks=blocks,
        lower=tuple(n for n, _ in tiers),
        lower_rates=tuple(rate for _, rate in tiers),
        prefetch=prefetch,
    )
    cluster = Cluster(
        instances=instances,
        model=model,
        load=load or 0.0,
        routers=routers,
        overhead_s=overhead,
        report_interval_s=report_interval,
        report_delay_s=report_delay,
        faults=(
            *(parse_crash(text, instances) for text in crash or []),
            *(parse_stall(text, instances) for text in stall or []),
        ),
        start_s=start_time,
        per_host=per_host,
        contention=contention or 0.0,
        seed=seed,
    )
    opened = synthetic(trace, seed) or open_trace(Path(trace))
    results = _run(opened, chosen, cluster, sweep or [], ordered, bounds)
    limits = _bounds(opened, instances * blocks)
    title = _title(opened, cluster)
    if html is not None:
        _write(html, opened, results, limits, title)
    if as_json:
        from sage_llm.simulator.report import as_json as to_json

        print_json(to_json(opened, results, limits, calibration))
        return
    _print(title, results, limits, calibration.lines() if calibration is not None else [])


def _run(
    trace: Trace,
    chosen: Sequence[PlacementPolicy],
    cluster: Cluster,
    sweep: Sequence[str],
    order: OrderPolicy,
    autoscale: Autoscale | None,
) -> list[Result]:
    from sage_llm.simulator.run import simulate as run
    from sage_llm.simulator.variants import policy_text, variants, with_scaling

    planned = with_scaling(variants(chosen, cluster, sweep), autoscale)
    results = []
    with progress_bar() as report:
        for number, variant in enumerate(planned, 1):
            stage = f"{number}/{len(planned)} {policy_text(variant.policy)}"

            def progress(share: float, stage: str = stage) -> None:
                report(stage, share)

            results.append(run(trace, variant.cluster, variant.policy, order, progress=progress))
    return results


def _title(trace: Trace, cluster: Cluster) -> str:
    summary, model = trace.summary, cluster.model
    tiers = "".join(f", {n:,} in {name}" for n, name in zip(model.lower, ("memory", "disk"), strict=False))
    return (
        f"{trace.name}: {summary.requests:,} requests, {summary.prompt_tokens / summary.requests:,.0f} prompt and "
        f"{summary.output_tokens / summary.requests:,.0f} output tokens on average; {cluster.instances} instances of "
        f"{model.blocks:,} blocks of {trace.block} tokens{tiers}"
        + (f", load {cluster.load:g}" if cluster.load else "")
    )


def _print(title: str, results: Sequence[Result], bounds: Bounds | None, calibrated: Sequence[str]) -> None:
    from sage_llm.commands.tables import table_lines
    from sage_llm.simulator.report import bound_lines, columns_and_rows

    for line in calibrated:
        print(line)
    print(title)
    columns, rows = columns_and_rows(results)
    print("\n".join(table_lines(columns, rows, right=columns[1:])))
    for line in bound_lines(bounds):
        print(line)
    for result in results:
        if result.refused:
            note(
                f"{result.policy}: {result.refused:,} requests do not fit into any instance and were refused"
            )
        if result.moved:
            note(
                f"{result.policy}: {result.moved:,} times a request lost its instance and continued on another one"
            )


def _write(file: Path, trace: Trace, results: Sequence[Result], bounds: Bounds | None, title: str) -> None:
    from sage_llm.simulator.page import page

    try:
        file.write_text(page(trace, results, bounds, title), "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None


def _bounds(trace: Trace, blocks: int) -> Bounds | None:
    from sage_llm.simulator.bounds import bounds_of

    if not trace.summary.has_keys or trace.summary.blocks > _MAX_BOUND_BLOCKS:
        return None
    return bounds_of(trace, blocks)


def _step(text: str) -> Step:
    import attrs

    from sage_llm.simulator.engine_model import EngineModel

    usual = EngineModel().step
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        try:
            seconds = float(value)
            if key.strip() not in attrs.fields_dict(type(usual)) or not 0 <= seconds < 3600:
                raise ValueError
        except ValueError:
            names = ", ".join(attrs.fields_dict(type(usual)))
            raise InvalidRequest(
                f"--step must be KEY=SECONDS,KEY=SECONDS with the keys {names}; got {part!r}"
            ) from None
        given[key.strip()] = seconds
    if given.get("per_prompt", 1.0) <= 0:
        raise InvalidRequest("--step: per_prompt must be above 0")
    return attrs.evolve(usual, **given)
