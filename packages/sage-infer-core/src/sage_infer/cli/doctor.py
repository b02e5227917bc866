"""``sage infer doctor``"""

from __future__ import annotations

import io
import platform
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.doctor_vendor import as_problem, checked_hardware, vendor_report
from sage_infer.cli.output import AsJson, note, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from sage_infer.discovery import PluginInfo

__all__ = ["doctor"]


def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all models again and compare their hashes.")
    ] = False,
    cache_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --verify: a further folder of prepared models, as the backend option cache_dir."
        ),
    ] = None,
    vendor: Annotated[
        str | None,
        typer.Option(
            "--vendor",
            help="Check the stack of this vendor instead: driver, toolkit, engine, devices, settings.",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Also write a new file for a bug report, without secrets.", dir_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show installed, ready and missing parts, with the command that fixes each problem. Exits with 1 on errors."""
    if cache_dir and not verify:
        raise typer.BadParameter("--cache-dir needs --verify")
    if vendor is not None and verify:
        raise typer.BadParameter("--vendor checks no models; run --verify without it")
    report = _report() if vendor is None else _vendor_report(vendor)
    if verify and report["distributions"]:
        _verify(report, cache_dir or [])
    if report_file is not None:
        _write(report_file, report, vendor)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if any(problem["severity"] == "error" for problem in report["problems"]):
        raise typer.Exit(1)


def _report() -> dict[str, Any]:
    """All checked items, and ``problems``, most severe first."""
    from sage_infer import CONTRACT_VERSION
    from sage_infer.config import load_config
    from sage_infer.discovery import backend_info, discover, plugin_info
    from sage_infer.discovery.distributions import describe_distribution, with_required
    from sage_infer.errors import ConfigError
    from sage_infer.models import list_models

    problems: list[dict[str, Any]] = []
    try:
        loaded = load_config()
        config = str(loaded.path) if loaded.path else None
        problems += [as_problem("warning", "environment", text) for text in loaded.warnings]
    except ConfigError as error:
        # Without a configuration nothing else can be read, but this finding is the whole diagnosis.
        return {**_machine(), "contract": CONTRACT_VERSION, "config": None, "distributions": [], "backends": [],
                "models": [], "problems": [as_problem("error", "configuration", error.message)]}  # fmt: skip
    registry = discover()
    backends = backend_info(registry)
    models = list_models()
    names = with_required({"sage-infer-core", *(plugin.distribution for plugin in registry.plugins)})
    for row in backends:
        problems += _problems_of(row)
    others = [row for row in plugin_info(registry) if row.kind != "backend"]
    for other in others:
        if (other.kind, other.name) not in {(row.kind, row.name) for row in backends}:
            problems += _problems_of(other)
    if not any(row.state == "ready" for row in backends):
        off = ", ".join(sorted(registry.disabled))
        what = f"none is ready; disabled: {off}" if off else "none is ready"
        problems.append(
            as_problem("error", "backends", what, "" if off else "pip install sage-infer-openvino")
        )
    for model in models:
        if model.state != "ready":
            severity = "error" if model.state == "broken" else "note"
            problems.append(as_problem(severity, f"model {model.name}", model.reason, model.fix))
    for name in checked_hardware(registry):
        what = "its devices are here; the stack of this vendor has checks of its own"
        problems.append(as_problem("note", f"vendor {name}", what, f"sage infer doctor --vendor {name}"))
    return {
        **_machine(),
        "contract": CONTRACT_VERSION,
        "config": config,
        "distributions": [describe_distribution(name) for name in names],
        "backends": [row.as_dict() for row in backends],
        "models": [model.as_dict() for model in models],
        "problems": _by_severity(problems),
    }


def _vendor_report(name: str) -> dict[str, Any]:
    """Checked parts of one vendor's stack, and ``problems``, most severe first."""
    from sage_infer import CONTRACT_VERSION
    from sage_infer.config import load_config
    from sage_infer.discovery import backend_info, discover

    registry = discover()
    path = load_config().path
    found = vendor_report(name, registry, backend_info(registry))
    return {
        **_machine(),
        "contract": CONTRACT_VERSION,
        "config": str(path) if path else None,
        **found,
        "problems": _by_severity(found["problems"]),
    }


def _write(path: Path, report: dict[str, Any], vendor: str | None) -> None:
    """Write a report for a bug report: what is printed, and the vendors' stacks if devices are here."""
    from sage_infer.cli.doctor_report import new_file, report_text
    from sage_infer.discovery import discover

    if vendor is not None:
        vendors = [report]
    else:  # without a configuration, plug-ins cannot be listed
        found = checked_hardware(discover()) if report["distributions"] else []
        vendors = [_vendor_report(name) for name in found]
    text = io.StringIO()
    with redirect_stdout(text):
        _print(report)
        for other in vendors:
            if other is not report:
                print(f"\nvendor {other['vendor']}")
                _print(other)
    nodes = [node for one in vendors for node in one["devices"]]
    new_file(path, report_text(text.getvalue(), [v for one in vendors for v in one["variables"]], nodes))
    note(f"wrote {path}; read it before you share it")


def _by_severity(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(problems, key=lambda problem: order[problem["severity"]])


def _verify(report: dict[str, Any], extra: list[Path]) -> None:
    """Compare the files of all models with their recorded hashes; add what was read and the problems."""
    from sage_infer.models.verify import Recorded, recorded_folders, verify_folders

    for folder in extra:
        if not folder.is_dir():
            raise typer.BadParameter(f"--cache-dir {folder} is no folder")
    folders = recorded_folders(extra)
    with progress_bar() as show:
        done: dict[Path, int] = {}

        def read(recorded: Recorded, count: int) -> None:
            done[recorded.folder] = done.get(recorded.folder, 0) + count
            show(f"verifying {recorded.folder.name}", done[recorded.folder] / max(recorded.size_bytes, 1))

        damages = verify_folders(folders, read)
    report["verified"] = {
        "models": len(folders),
        "files": sum(len(recorded.files) for recorded in folders),
        "bytes": sum(done.values()),
        "damaged": [str(damage.file) for damage in damages],
    }
    found = [as_problem("error", str(damage.file), damage.reason, damage.fix) for damage in damages]
    report["problems"] = [*found, *report["problems"]]


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }


def _problems_of(row: PluginInfo) -> list[dict[str, Any]]:
    """Why an item is not ready; empty for ready or disabled items."""
    if row.state in ("ready", "disabled"):
        return []
    noun = "plug-in" if row.kind == "plugin" else row.kind
    if row.state in ("broken", "incompatible"):
        return [as_problem("error", f"{noun} {row.name}", row.reason, row.fix)]
    fix = row.fix or (f"sage infer backend show {row.name}" if row.missing else "")
    return [as_problem("note", f"{noun} {row.name}", row.reason, fix)]


def _origin(distribution: dict[str, Any]) -> str:
    if distribution["editable"]:
        return f"editable {distribution['origin']}"
    return str(distribution["origin"] or distribution["location"])


def _print(report: dict[str, Any]) -> None:
    print(f"Python {report['python']} at {report['executable']} on {report['platform']}")
    print(f"contract {report['contract']}, configuration {report['config'] or 'none (defaults)'}\n")
    for columns, rows in (
        (
            ("DISTRIBUTION", "VERSION", "FROM"),
            [(d["name"], d["version"], _origin(d)) for d in report.get("distributions", ())],
        ),
        (
            ("PART", "VERSION"),
            [(part["name"], part["version"] or "not found") for part in report.get("parts", ())],
        ),
        (
            ("BACKEND", "STATE", "REASON"),
            [(b["name"], b["state"], b["reason"] or b["summary"]) for b in report["backends"]],
        ),
        (
            ("MODEL", "STATE", "WHERE"),
            [(m["name"], m["state"], m["path"] or m["source"]) for m in report.get("models", ())],
        ),
    ):
        if rows:
            print_table(columns, rows)
            print()
    if "verified" in report:
        read = report["verified"]
        size = f"{read['bytes'] / 1e6:,.0f} MB"
        print(
            f"verified: {read['models']} models, {read['files']} files, {size}, {len(read['damaged'])} damaged\n"
        )
    if not report["problems"]:
        print("no problems found")
    for problem in report["problems"]:
        fix = f"\n    fix: {problem['fix']}" if problem["fix"] else ""
        print(f"{problem['severity']}: {problem['where']}: {problem['what']}{fix}")
