"""Tables and texts of the commands."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["decision_lines", "status_lines", "table_lines", "width"]

_STATES = {
    "ready": "32",
    "probation": "33",
    "suspect": "33",
    "draining": "33",
    "starting": "33",
    "pausing": "33",
}


def width(text: str) -> int:
    """Number of columns of a text on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> list[str]:
    """Aligned lines; columns in ``right`` are aligned to the right."""
    widths = [max(map(width, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = []
        for name, cell, wide in zip(columns, row, widths, strict=True):
            space = " " * (wide - width(cell))
            cells.append(space + cell if name in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """The output of ``sage llm status``."""
    columns = [
        "INSTANCE",
        "STATE",
        "ROLE",
        "RUN",
        "WAIT tok",
        "KV used",
        "REPORT",
        "MIGRATED",
        "RESTARTS",
        "NOTE",
    ]
    rows = [_row(replica) for replica in status["replicas"] if replica["state"] != "gone"]
    requests = status["requests"]
    counts = ", ".join(
        f"{requests[name]} {name}"
        for name in ("open", "waiting", "finished", "failed", "refused", "cancelled")
    )
    return [
        *table_lines(columns, rows, right=("RUN", "WAIT tok", "KV used", "REPORT", "RESTARTS")),
        f"requests: {counts}; {requests['migrations']} migrations, {requests['retries']} retries",
        *_call_lines(status.get("calls", {})),
        *map(_scaling_line, status.get("scaling", [])),
        *_quota_lines(status.get("quotas", {})),
        f"{status['url']}  policy {status['policy']}  order {status['order']}",
    ]


def _call_lines(calls: Mapping[str, Any]) -> list[str]:
    """A line about embedding and reranking requests, if there have been any."""
    kinds = {kind: calls.get(kind, {}) for kind in ("embed", "rerank")}
    if not calls or not (calls["open"] or any(sum(ends.values()) for ends in kinds.values())):
        return []
    parts = [
        f"{kind} " + ", ".join(f"{count} {outcome}" for outcome, count in ends.items() if count)
        for kind, ends in kinds.items()
        if any(ends.values())
    ]
    return [f"calls: {calls['open']} open; {'; '.join(parts)}; {calls['batches']} batches"]


def _scaling_line(row: Mapping[str, Any]) -> str:
    """A line about the number of a model's replicas, and why it is that."""
    parts = [f"{row['desired']} wanted, {row['actual']} ready"]
    if row["starting"]:
        parts.append(f"{row['starting']} starting")
    cost = "" if row["cost"] is None else f", cost {row['cost']:.2f}"
    last = f"; {row['decided_s']:.0f} s ago: {row['reason']}" if row["reason"] else ""
    return (
        f"scaling {row['model']} {row['min']}:{row['max']}: {', '.join(parts)}; {row['replica_hours']:.2f} replica "
        f"hours{cost}{last}"
    )


def _quota_lines(quotas: Mapping[str, Any]) -> list[str]:
    """A table of the quotas of KV, if there are any."""
    if not quotas:
        return []
    columns = ["KV QUOTA (tokens)", "RESERVED", "CEILING", "USED", "BORROWED", "WAITING", "TAKEN BACK"]
    rows = [
        [
            path,
            *(f"{row[name]:,}" if row[name] else "-" for name in ("reserved", "ceiling")),
            *(f"{row[name]:,}" for name in ("used", "borrowed", "waiting")),
            f"{row['taken_back']} times" if row["taken_back"] else "-",
        ]
        for path, row in quotas.items()
    ]
    return table_lines(columns, rows, right=columns[1:])


def _row(replica: Mapping[str, Any]) -> list[str]:
    note = replica["reason"] or ""
    if replica["ended_s"] is not None:
        note = f"ended {replica['ended_s']:.0f} s ago: {note}"
    runs = "running" in replica
    return [
        replica["instance"],
        replica["state"],
        replica.get("role", "-"),
        str(replica["running"]) if runs else "-",
        str(replica["queued_tokens"]) if runs else "-",
        "-" if replica.get("kv_used") is None else f"{replica['kv_used']:.0%}",
        f"{replica['report_age_s']:.1f} s" if runs else "-",
        f"in {replica['migrated_in']} out {replica['migrated_out']}" if runs else "-",
        str(replica["restarts"]),
        note,
    ]


def decision_lines(receipt: Mapping[str, Any]) -> list[str]:
    """The output of ``sage llm explain``: what was known, which instances were considered, and why."""
    measured = "-" if receipt["ttft_measured_s"] is None else f"{receipt['ttft_measured_s']:.2f} s"
    lines = [
        f"request {receipt['request_id']} of model {receipt['model']}, prompt {receipt['prompt_tokens']:,} tokens, "
        f"waited {receipt['waited_s']:.3f} s",
        f"{receipt['policy']} α={receipt['alpha']:.1f} ρ={receipt['rho']:.2f}: {receipt['decision']} "
        f"{receipt['instance'] or '-'}, TTFT predicted {receipt['ttft_predicted_s']:.2f} s, measured {measured}",
    ]
    if chain := receipt.get("chain"):
        left = "none" if chain["to_deadline_s"] is None else f"in {chain['to_deadline_s']:.2f} s"
        lines.append(
            f"chain {chain['name']}, step {chain['step']}: deadline {left}, expected to need {chain['left_s']:.2f} s"
        )
    for candidate in receipt["candidates"]:
        mark = "  chosen" if candidate["instance"] == receipt["instance"] else ""
        if candidate["instance"] == receipt["prefill_instance"]:
            mark = "  chosen for the prefill"
        lines.append(
            f"    {candidate['instance'] or '-'}  uncached {candidate['uncached_tokens']:,} ×{receipt['alpha']:.1f} + "
            f"queued {candidate['queued_tokens']:,.0f} → cost {candidate['cost']:.4g}{mark}"
        )
    lines += _hand_over_lines(receipt)
    if prefetch := receipt.get("prefetch"):
        lines.append(
            f"    {prefetch['pages']} pages of its KV moved up on {prefetch['instance']} while it waited"
        )
    if quota := receipt.get("quota"):
        lines.append(_quota_line(quota))
    if receipt["message"]:
        lines.append(f"    {receipt['message']}")
    lines += [
        f"    left {move['instance'] or 'its instance'} ({move['why']}): sent on after {move['wait_s']:.3f} s, next "
        f"token {move['restore_s']:.3f} s later"
        for move in receipt.get("moves", ())
    ]
    lines += [
        f"    before: {decision['decision']} {decision['instance'] or '-'}" for decision in receipt["earlier"]
    ]
    return lines


_KV = {
    "own": "within its reserve",
    "free": "not reserved",
    "borrowed": "reserved for others, lent until they need it",
}
_HELD = {"ceiling": "by a ceiling", "reserved": "for the owners of reserves"}


def _quota_line(quota: Mapping[str, Any]) -> str:
    """What its quota of KV did to a request."""
    text = f"    quota {quota['path']}: its KV is {_KV[quota['kv']]}"
    if quota["held_by"]:
        text += f"; held back {_HELD[quota['held_by']]} for {quota['held_s']:.3f} s"
    if quota["pauses"]:
        text += f"; paused {quota['pauses']} time{'s' if quota['pauses'] > 1 else ''} before"
    return text


def _hand_over_lines(receipt: Mapping[str, Any]) -> list[str]:
    """How the prompt of a request was computed on another instance, or why it was not."""
    moved = receipt["transfer"]
    if moved is not None:
        return [
            f"    prefill on {receipt['prefill_instance']} in {moved['prefill_s']:.3f} s, "
            + (
                f"{moved['nbytes'] / 2**20:.1f} MiB of KV moved in {moved['seconds']:.3f} s"
                if moved["nbytes"]
                else f"{receipt['cached_tokens'] or 0} tokens of KV from its caches and its store"
            )
        ]
    if receipt["prefill_given_up"]:
        return [f"    prefill on {receipt['instance']} instead: {receipt['prefill_given_up']}"]
    return []


def clear_screen() -> None:
    sys.stdout.write("\x1b[H\x1b[2J")
