"""Prefixes of log lines before a tool's output: docker, Kubernetes, stern, syslog, journald and others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

__all__ = ["without_log_prefixes"]

_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|[+-]\d\d:?\d\d))?"
_SYSLOG = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?"
_UNIX = r"\d{9,10}\.\d{3,9}"
_FULL = rf"[A-Z][a-z][a-z] {_ISO}(?: [A-Z]{{2,5}})?"  # journalctl -o short-full
_SHORT = r"\d\d-\d\d \d\d:\d\d:\d\d"  # stern --timestamps=short
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_GO = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)?"
_DATE = rf"(?:{_ISO}|{_SYSLOG}|{_UNIX}|{_FULL}|{_SHORT}|{_CLOCK}|{_GO})"
_LEVEL = r"(?:TRACE|DEBUG|INFO|NOTICE|SUCCESS|WARNING|WARN|ERROR|CRITICAL)"
# The time may be the only thing on a line: the tool printed a blank one.
_TIME = re.compile(rf"(?:<\d{{1,3}}>(?:1 )?)?(?:{_DATE}|\[ *(?:{_DATE}|\d+\.\d{{6}})\])(?: |$)")
_AFTER_TIME = (
    re.compile(r"(?:stdout|stderr) (?P<part>[FP])(?: |$)"),  # containerd and CRI-O
    # host tag[pid]: of syslog and journald; tag[pid]: where the host is left out
    re.compile(r"(?P<who>\S+ [A-Za-z][\w./@-]*(?:\[\d+\])?): ?"),
    re.compile(r"(?P<who>[A-Za-z][\w./@-]*\[[\w.-]+\]): ?"),
    re.compile(r"(?P<who>\{[\w.-]+=\"[^{}]*\"\})(?: |$)"),  # logcli
    re.compile(r"\d\d[OE](?:[ +]|$)"),  # GitLab's jobs
    re.compile(r"(?P<who>\S+ [A-Za-z][\w./@-]*) (?:\d+|-) \S+ (?:-|\[[^\]]*\]) ?"),  # RFC 5424
    re.compile(rf"\| {_LEVEL} +\| \S+ - ?"),  # Loguru
    re.compile(r"(?:- )?\[?(?:DEBUG|INFO|NOTICE|WARNING|WARN|ERROR)\]?(?:\s*-|:)?(?: [\w.]+:)? ?"),
)
_NAME = r"[a-z][a-z0-9.-]*"  # of Kubernetes
_WITHOUT_TIME = (
    # docker compose, docker service, podman-compose
    re.compile(r"(?P<who>\[?[A-Za-z][\w.@-]*\]?) +\|(?: |$)"),
    re.compile(r"(?P<who>\[[A-Za-z]+/[\w./-]+\])(?: |$)"),  # kubectl logs --prefix
    re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\](?: |$)"),  # klog
    re.compile(r"(?P<who>\((?:\S+ )?pid=\d+(?:, ip=[\da-f.:]+)?\))(?: |$)"),  # Ray
    re.compile(r"(?P<who>\[rank\d+\]):(?: |$)"),  # torchrun
    re.compile(r"(?P<who>[A-Za-z][\w.-]* std(?:out|err)) \|(?: |$)"),  # Supervisor
    re.compile(r"(?P<who>\[\d+,\d+\]<std(?:out|err)>):"),  # mpirun --tag-output
    re.compile(r"(?P<who>\[[\w.-]+@\d+,\d+\]<std(?:out|err)>): ?"),  # of Open MPI 5
    re.compile(r"(?P<who>\[[\w.@:-]+\] (?:out|err)):(?: |$)"),  # Fabric
    re.compile(rf"\[{_ISO}\](?:\[[\w.]+\]){{1,2}}(?: -)?(?: |$)"),  # Hydra
    re.compile(rf"{_LEVEL} \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]+:\d+\](?: |$)"),  # vLLM
    re.compile(rf"{_LEVEL}:[\w.]+:"),  # Python's logging
    re.compile(rf"\[{_LEVEL}\](?: |$)"),
    re.compile(r"(?P<who>>)(?: |$)"),  # a quotation
)
_REPEATED = (  # prefixes only if several lines have them
    # stern: pod and container, before them the namespace of several; a pod without a hyphen is named like its container
    re.compile(rf"(?P<who>(?:{_NAME} )?(?:(?=[a-z0-9.]*-){_NAME} {_NAME}|(?P<pod>{_NAME}) (?P=pod)))(?: |$)"),
    re.compile(r"(?P<who> *\d{1,5}):(?: |$)"),  # srun --label
    re.compile(r"(?P<who>(?!\S*smi)[a-z][a-z0-9]*(?:[.-][a-z0-9.-]*[a-z0-9]|0\d+)):(?: |$)"),  # pdsh, clush
)
_REMARK = re.compile(  # lines that are no output of a tool
    rf"[+-] (?:{_NAME} )?{_NAME} › {_NAME}$"  # stern, about pods
    r"|-- (?:Logs begin|Journal begins|Boot|Reboot|No entries)\b.*--$"  # journalctl
    r"|\s*(?:```|~~~)\w*$"  # Markdown
    r"|Script (?:started|done) on \d{4}-|Every \d+(?:\.\d+)?s: "  # script, watch
    r"|[a-z_][\w-]*@[\w.-]+:\S*[#$](?: |$)|\[[a-z_][\w-]*@[\w.-]+ \S+\][#$](?: |$)|\$ \S"  # prompts of shells
    r"|(?:PS )?[A-Z]:\\[^<>|]*>"  # of Windows
    r"|\s*(?:</?(?:pre|code|details)>|<summary>[^<>]*</summary>)+\s*$|\(END\)$"  # HTML in Markdown; less
    r"|==> \S+ <==$|\S+ \| (?:CHANGED|SUCCESS) \| rc=0 >>$"  # tail, Ansible
)
_JSON = (  # the key of the text, and others of the same format
    ("log", {"time"}),  # docker
    ("log", {"date"}),  # Fluent Bit
    ("MESSAGE", {"__REALTIME_TIMESTAMP"}),  # journalctl -o json
    ("message", {"podName", "containerName"}),  # stern -o json
    ("line", {"timestamp"}),  # logcli -o jsonl
)


_LAYERS = 3  # a pod's log in a journal that is quoted


def without_log_prefixes(lines: Sequence[str]) -> list[str]:
    """Return the lines without their common kind of prefix; unchanged if some lines have none.

    Lines that a log's viewer, a terminal or Markdown adds become blank.

    A prefix is a time, with what a log's format puts after it, or the name of a service or pod. Blank lines need no
    prefix. Lines stay lines, so that errors name the log's own.
    """
    kept = _dedented(["" if _REMARK.match(line) else line for line in lines])
    for _ in range(_LAYERS):
        stripped = _without_one(kept)
        if stripped == kept:
            break
        kept = stripped
    return kept


def _dedented(lines: Sequence[str]) -> list[str]:
    """The lines without the indentation of a block in Markdown or YAML; tools indent all lines by one space at most."""
    written = [line for line in lines if line.strip()]
    indents = [line[: len(line) - len(line.lstrip(" \t"))] for line in written]
    indent = min(indents, key=len, default="")
    if indent in ("", " ") or not all(other.startswith(indent) for other in indents):
        return list(lines)
    return [line[len(indent) :] for line in lines]


def _without_one(lines: Sequence[str]) -> list[str]:
    found = _from_json(lines)
    if found is not None:
        return found
    plain = _strip(lines, [_WITHOUT_TIME])
    if sum(bool(line.strip()) for line in plain) > 1:
        plain = _strip(plain, [_REPEATED])
    timed = [_TIME.match(line) for line in plain]
    if not any(timed) or not all(match or not line.strip() for match, line in zip(timed, plain, strict=True)):
        return plain
    return _strip(
        [line[match.end() :] if match else "" for match, line in zip(timed, plain, strict=True)],
        [_AFTER_TIME],
    )


def _strip(lines: Sequence[str], groups: Sequence[Sequence[re.Pattern[str]]]) -> list[str]:
    """The lines without the first prefix of each group that every line has, from the same sender."""
    kept = list(lines)
    for patterns in groups:
        for pattern in patterns:
            matches = [pattern.match(line) for line in kept]
            if _agree(kept, matches):
                kept = _joined(kept, matches)
                break
    return kept


def _agree(lines: Sequence[str], matches: Sequence[re.Match[str] | None]) -> bool:
    found = [match for match in matches if match]
    senders = {match["who"] for match in found if "who" in match.re.groupindex}
    whole = all(match or not line.strip() for match, line in zip(matches, lines, strict=True))
    return bool(found) and whole and len(senders) <= 1


def _joined(lines: Sequence[str], matches: Sequence[re.Match[str] | None]) -> list[str]:
    """What follows the prefixes; a line that containerd cut (``P``) continues on the next."""
    kept: list[str] = []
    begun = ""
    for line, match in zip(lines, matches, strict=True):
        rest = begun + (line[match.end() :] if match else line)
        partial = match is not None and match.groupdict().get("part") == "P"
        kept.append("" if partial else rest)
        begun = rest if partial else ""
    if begun:
        kept[-1] = begun
    return kept


def _from_json(lines: Sequence[str]) -> list[str] | None:
    """Return the messages of a log whose lines are JSON objects; None for any other text."""
    filled = [line for line in lines if line.strip()]
    if not filled or not all(line.startswith("{") and line.rstrip().endswith("}") for line in filled):
        return None
    kept = []
    for line in lines:
        text = _message(line) if line.strip() else ""
        if text is None:
            return None
        kept.append(text.rstrip("\n"))
    return kept


def _message(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    for key, others in _JSON:
        if key in entry and others <= entry.keys():
            text = entry[key]
            if isinstance(text, list):  # journald's form of texts with control characters
                try:
                    text = bytes(text).decode("utf-8", "replace")
                except (TypeError, ValueError):
                    return None
            return text if isinstance(text, str) else None
    return None
