"""``sage infer bench``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from sage_infer.errors import ConfigError, InvalidRequest

from sage_infer_serve.bench.workload import Endpoint, Lengths, Workload

if TYPE_CHECKING:
    from sage_infer_serve.bench.load import Run
    from sage_infer_serve.bench.report import Report

__all__ = ["bench"]

_INTERRUPTED = 130
_WARM_UP_SEED = 1_000_003  # added to the run's seed, so that the warm-up does not fill the prefix cache


def bench(
    url: Annotated[str, typer.Option(help="Server to measure.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model; optional if the server has only one.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="chat, completions or embeddings.")] = "chat",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Concurrent requests.  [default: 8]")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", "-r", help="Requests per second at random times (Poisson), instead of --concurrency."
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests", "-n", min=1, help="Number of requests.  [default: 100, or as --duration allows]"
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", "-t", help="Send requests for this many seconds.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up requests, not measured.")] = 4,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Request streamed text.")] = True,
    input_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per prompt.  [default: random, like ShareGPT; 100 for embeddings]"),
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens per output.  [default: random, like ShareGPT]")
    ] = None,
    length_scale: Annotated[
        float, typer.Option(help="Factor for random lengths, such as 0.25 for slow servers.")
    ] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Texts per embedding request.")] = 1,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Generate the full length (an extension of vLLM and sage-infer)."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of lengths, texts and times.")] = 0,
    timeout: Annotated[float, typer.Option(help="Timeout of one request in seconds.")] = 600.0,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OPENAI_API_KEY", show_envvar=True, help="API key; preferably set in the environment."
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write settings, figures and samples; - prints them."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the figures as an SVG.")] = None,
) -> None:
    """Measure an OpenAI-compatible server: latency and throughput.

    Either --concurrency requests are kept open, or --rate requests are sent per second, independent of the server.
    """
    from sage_infer_serve.http.client import Server

    if concurrency is not None and rate is not None:
        raise InvalidRequest("--concurrency and --rate are mutually exclusive; use one of them")
    for name, value in (
        ("--rate", rate),
        ("--duration", duration),
        ("--length-scale", length_scale),
        ("--timeout", timeout),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise InvalidRequest(f"{name} must be a number greater than 0, got {value:g}")
    if endpoint not in get_args(Endpoint):
        raise InvalidRequest(f"--endpoint must be one of {', '.join(get_args(Endpoint))}; got {endpoint!r}")
    for file in (json_file, plot):
        if file is not None and str(file) != "-" and not file.absolute().parent.is_dir():
            raise InvalidRequest(f"{file}: folder {file.absolute().parent} does not exist")
    if requests is None and duration is None:
        requests = 100
    if concurrency is None and rate is None:
        concurrency = 8
    lengths = Lengths(input=input_tokens, output=output_tokens, scale=length_scale)
    settings: dict[str, Any] = {
        "url": str(Server.parse(url)), "model": model, "endpoint": endpoint, "concurrency": concurrency, "rate": rate,
        "requests": requests, "duration_s": duration, "warmup": warmup, "stream": stream, "input_tokens": input_tokens,
        "output_tokens": output_tokens, "length_scale": length_scale, "batch": batch, "ignore_eos": ignore_eos,
        "seed": seed, "timeout_s": timeout,
    }  # fmt: skip
    run, report = _run(settings, lengths, api_key)
    _print(settings, report, to_stderr=str(json_file) == "-")
    if json_file is not None:
        _write_json(json_file, settings, run, report)
    if plot is not None:
        from sage_infer_serve.bench.plot import draw

        _write(plot, draw(_title(settings, report), run, report))
    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    if not report.answered:
        raise typer.Exit(1)


def _run(settings: dict[str, Any], lengths: Lengths, api_key: str | None) -> tuple[Run, Report]:
    from sage_infer.compat import Runner

    from sage_infer_serve.bench.report import report_on

    loop_factory = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with Runner(loop_factory=loop_factory) as runner:
        run = runner.run(_measure(settings, lengths, api_key))
    return run, report_on(run)


async def _measure(settings: dict[str, Any], lengths: Lengths, api_key: str | None) -> Run:
    from sage_infer_serve.bench import load
    from sage_infer_serve.bench.preflight import choose_model, warm_up
    from sage_infer_serve.bench.progress import Progress, shown
    from sage_infer_serve.bench.workload import arrivals
    from sage_infer_serve.http.client import Client, Server

    server = Server.parse(settings["url"])
    client = Client(server, api_key=api_key)
    try:
        settings["model"], models = await choose_model(client, server, settings["model"])
        workload = Workload(
            endpoint=settings["endpoint"], model=settings["model"], lengths=lengths, stream=settings["stream"],
            batch=settings["batch"], ignore_eos=settings["ignore_eos"],
        )  # fmt: skip
        sender = load.Sender(client, workload, timeout_s=settings["timeout_s"])
        seed, concurrency = settings["seed"], settings["concurrency"]
        if settings["warmup"]:
            progress = Progress(settings["warmup"], None)
            async with shown("warming up", progress):
                drawn = workload.requests(seed + _WARM_UP_SEED)
                await warm_up(sender, drawn, concurrency=concurrency or 1, progress=progress, models=models)
        progress = Progress(settings["requests"], settings["duration_s"])
        limits: dict[str, Any] = {
            "count": settings["requests"], "duration_s": settings["duration_s"],
            "on_outcome": lambda outcome: progress.count(failed=outcome.error is not None),
        }  # fmt: skip
        async with shown("measuring", progress):
            if concurrency is not None:
                return await load.closed_loop(
                    sender, workload.requests(seed), concurrency=concurrency, **limits
                )
            times = arrivals(settings["rate"], seed)
            return await load.open_loop(sender, workload.requests(seed), times, **limits)
    finally:
        client.close()


def _print(settings: dict[str, Any], report: Report, *, to_stderr: bool) -> None:
    from contextlib import redirect_stdout

    from sage_infer.cli.output import note, print_table

    # With --json, standard output is reserved for the JSON.
    with redirect_stdout(sys.stderr if to_stderr else sys.stdout):
        print(_title(settings, report))
        if lengths := report.lengths():
            print(lengths)
        columns, rows = report.table()
        if rows:
            print()
            print_table(columns, rows)
            print(f"\n{report.throughput()}")
    if report.failed:
        note(
            f"\n{report.failed:,} of {report.answered + report.failed:,} requests failed (not in other figures):"
        )
        for message, count in report.errors.items():
            note(f"  {count:,} × {message}")
    for warning in report.warnings():
        note(f"warning: {warning}")
    if report.interrupted:
        note("interrupted: figures of the completed requests")


def _title(settings: dict[str, Any], report: Report) -> str:
    how = settings["endpoint"]
    if how == "embeddings":
        how += f", {settings['batch']} texts each" if settings["batch"] > 1 else ""
    elif settings["stream"]:
        how += ", streamed"
    load = (
        f"concurrency {settings['concurrency']}"
        if settings["concurrency"] is not None
        else f"{settings['rate']:g} a second (Poisson)"
    )
    return f"{settings['model']}, {how}: {load}, {report.answered:,} answers in {report.duration_s:.1f} s"


def _write_json(file: Path, settings: dict[str, Any], run: Run, report: Report) -> None:
    import json
    from importlib.metadata import version

    samples = [
        {
            "due_s": o.due - run.began,
            "ttft_s": None if o.first is None else o.first - o.due,
            "e2e_s": o.ended - o.due,
            "prompt_tokens": o.prompt_tokens,
            "cached_tokens": o.cached_tokens,
            "output_tokens": o.output_tokens,
            "error": o.error,
        }
        for o in run.outcomes
    ]
    data = {
        "tool": f"sage-infer-serve {version('sage-infer-serve')}",
        "settings": settings,
        "report": report.as_data(),
        "samples": samples,
    }
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    if str(file) == "-":
        print(text, end="")
    else:
        _write(file, text)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None
