"""``sage infer doctor``"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.output import AsJson, print_json, print_table, progress_bar

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
    as_json: AsJson = False,
) -> None:
    """Show installed, ready and missing parts, with the command that fixes each problem. Exits with 1 on errors."""
    if cache_dir and not verify:
        raise typer.BadParameter("--cache-dir needs --verify")
    report = _report()
    if verify and report["distributions"]:
        _verify(report, cache_dir or [])
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

    problems: list[dict[str, str]] = []
    try:
        loaded = load_config()
        config = str(loaded.path) if loaded.path else None
        problems += [_problem("warning", "environment", text) for text in loaded.warnings]
    except ConfigError as error:
        # Without a configuration nothing else can be read, but this finding is the whole diagnosis.
        return {**_machine(), "contract": CONTRACT_VERSION, "config": None, "distributions": [], "backends": [],
                "models": [], "problems": [_problem("error", "configuration", error.message)]}  # fmt: skip
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
        problems.append(_problem("error", "backends", what, "" if off else "pip install sage-infer-openvino"))
    for model in models:
        if model.state != "ready":
            severity = "error" if model.state == "broken" else "note"
            problems.append(_problem(severity, f"model {model.name}", model.reason, model.fix))
    order = {"error": 0, "warning": 1, "note": 2}
    return {
        **_machine(),
        "contract": CONTRACT_VERSION,
        "config": config,
        "distributions": [describe_distribution(name) for name in names],
        "backends": [row.as_dict() for row in backends],
        "models": [model.as_dict() for model in models],
        "problems": sorted(problems, key=lambda problem: order[problem["severity"]]),
    }


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
    found = [_problem("error", str(damage.file), damage.reason, damage.fix) for damage in damages]
    report["problems"] = [*found, *report["problems"]]


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }


def _problems_of(row: PluginInfo) -> list[dict[str, str]]:
    """Why an item is not ready; empty for ready or disabled items."""
    if row.state in ("ready", "disabled"):
        return []
    noun = "plug-in" if row.kind == "plugin" else row.kind
    if row.state in ("broken", "incompatible"):
        return [_problem("error", f"{noun} {row.name}", row.reason, row.fix)]
    fix = row.fix or (f"sage infer backend show {row.name}" if row.missing else "")
    return [_problem("note", f"{noun} {row.name}", row.reason, fix)]


def _problem(severity: str, where: str, what: str, fix: str = "") -> dict[str, str]:
    return {"severity": severity, "where": where, "what": what, "fix": fix}


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
            [(d["name"], d["version"], _origin(d)) for d in report["distributions"]],
        ),
        (
            ("BACKEND", "STATE", "REASON"),
            [(b["name"], b["state"], b["reason"] or b["summary"]) for b in report["backends"]],
        ),
        (
            ("MODEL", "STATE", "WHERE"),
            [(m["name"], m["state"], m["path"] or m["source"]) for m in report["models"]],
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
