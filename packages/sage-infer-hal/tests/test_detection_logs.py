"""What logs, terminals and people add to a tool's output; and what a profile must not hold."""

from __future__ import annotations

import json

import pytest
from sage_infer_hal.detection import ToolText, board_names, gap_notes, redacted
from sage_infer_hal.detection.fused import split_cells, splits

OUTPUT = [
    "Wed Nov  8 16:16:45 2023",
    "| GPU 0: A |",
    "",
    "HCU[0] : Series: K",
    "GPU 0: Orin (nvgpu) (UUID: 0)",
]
PREFIXES = [
    "2026-11-29T09:41:36.123456789Z ",
    "2026-11-29T09:41:36.123456789+00:00 stdout F ",
    "2026-11-29T09:41:36+0000 gpu07 smi[9]: ",
    "Nov 29 09:41:36 node-1 docker[123]: ",
    "Nov 29 09:41:36.123456 node-1 smi: ",
    "Nov  9 09:41:36 ",
    "1764409296.123456 node-1 smi[1]: ",
    "<134>1 2026-11-29T09:41:36.123Z node-1 smi 99 - - ",
    "[  123.456789] ",
    "[2026-11-29 09:41:36] ",
    "2026-11-29 09:41:36,123 INFO run: ",
    "2026-11-29 09:41:36,123 - INFO - ",
    "web-1  | ",
    "[pod/web-7d/main] ",
    "[pod/web-7d/main] 2026-11-29T09:41:36.123456789Z ",
    "> ",
    "smi-7d4f-x2x4z main ",  # stern
    "smi-7d4f-x2x4z main 2026-11-29T09:41:36.123456789Z ",
    "smi-7d4f-x2x4z main 11-29 09:41:36 ",
    "kube-system smi-7d4f-x2x4z main ",
    "default smi smi ",
    "smi smi ",
    "[pod/web-7d/main] 2026-11-29T09:41:36.123456789+08:00 ",
    "web-1  | 2026-11-29T09:41:36.123456789Z ",  # docker compose logs -t
    "web_1    | ",
    "smi.1.q8zr3x@gpu-07    | ",  # docker service logs
    "[smi]    | ",  # podman-compose
    "2026-11-29T09:41:36+08:00 gpu07 smi[9]: ",
    "2026-11-29T09:41:36.123456+0000 gpu07 systemd-smi[9]: ",  # journalctl -o short-iso-precise
    "Sun 2026-11-29 09:41:36 UTC gpu07 smi[9]: ",  # journalctl -o short-full
    "[  123.456789] gpu07 smi[9]: ",  # journalctl -o short-monotonic
    "2026-11-29T09:41:36.123456Z 00O ",  # GitLab
    "I1129 09:41:36.123456       1 smi.go:10] ",  # klog
    "gpu-07: ",  # pdsh
    "node01: ",
    "rack1.example.org: ",
    '2026-11-29T09:41:36Z {app="smi", node="gpu7"} ',  # logcli
    "2026-11-29T09:41:36.123456+00:00 app[web.1]: ",  # Heroku
    "(Smi pid=123) ",  # Ray
    "(pid=123, ip=10.0.0.1) ",
    "[rank0]: ",  # torchrun
    "smi stdout | ",  # Supervisor
    "[09:41:36] ",
    "00:00:01 ",  # ts -s
    "0: ",  # srun --label
    " 3: ",
    "[1,0]<stdout>:",  # mpirun --tag-output
    "[prterun-gpu7-1@1,0]<stdout>: ",
    "[gpu7] out: ",  # Fabric
    "2026/11/29 09:41:36 ",  # Go
    "2026/11/29 09:41:36.123456 ",
    "2026-11-29 09:41:36.123 | INFO     | run:main:12 - ",  # Loguru
    "[2026-11-29 09:41:36,123][root][INFO] - ",  # Hydra
    "INFO 11-29 09:41:36 [gpu.py:12] ",  # vLLM
    "(EngineCore_0 pid=12) INFO 11-29 09:41:36 [gpu.py:12] ",
    "INFO:root:",
    "[INFO] ",
]


def lines(text: str) -> list[str]:
    return [line.text for line in ToolText.of(text, tool="x").lines]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_logs_are_taken_away(prefix: str) -> None:
    plain = [line for line in OUTPUT if line]
    assert lines("\n".join(prefix + line for line in OUTPUT)) == plain
    assert lines("\n".join(f"{prefix}\x1b[32m{line}\x1b[0m\r" for line in OUTPUT)) == plain
    assert lines("\n".join(prefix + line for line in [*OUTPUT, ""])) == plain


def test_remarks_of_the_viewers_of_logs_are_left_out() -> None:
    stern = [f"smi-7d main {line}" for line in OUTPUT]
    plain = [line for line in OUTPUT if line]
    assert lines("\n".join(["+ smi-7d › main", *stern, "- smi-7d › main"])) == plain
    assert lines("\n".join(["+ gpu smi-7d › main", *(f"gpu {line}" for line in stern)])) == plain
    journal = [f"Nov 29 09:41:36 node-1 smi[9]: {line}" for line in OUTPUT]
    for before, after in (
        ("```console", "```"),
        ("Every 1.0s: smi        gpu7: Sun Nov 29 09:41:36 2026", ""),
        (
            'Script started on 2026-11-29 09:41:36+00:00 [TERM="xterm"]',
            "Script done on 2026-11-29 09:41:40+00:00",
        ),
        ("root@gpu7:~# smi -a", "root@gpu7:~#"),
        ("[root@gpu7 ~]# smi -a", "[root@gpu7 ~]#"),
        ("$ smi -a", ""),
        ("PS C:\\Users\\a b> smi -a", "PS C:\\Users\\a b>"),
        ("==> smi.log <==", ""),
        ("<details>\n<summary>smi</summary>\n\n```", "```\n</details>"),
        ("<pre>", "</pre>"),
        ("<details><summary>smi</summary>", "</details>"),
        ("", "(END)"),
        ("gpu7 | CHANGED | rc=0 >>", ""),
    ):
        assert lines("\n".join([before, *OUTPUT, after])) == plain
    begin = "-- Logs begin at Sun 2026-11-29 09:00:00 UTC, end at Sun 2026-11-29 09:59:00 UTC. --"
    assert lines("\n".join([begin, *journal, "-- Boot 0a1b --", *journal])) == plain * 2


@pytest.mark.parametrize(
    "listed",
    [
        ["nvidia-smi main"],  # one line only
        ["web-7d main one", "web-8e main two"],  # two pods
        ["gpu-0 one", "gpu-0 One"],
        ["gpu0: one", "gpu0: two"],
        ["npu-smi: one", "npu-smi: two"],
        ["0 0 one", "0 0 two"],
        ["temp fan one", "temp fan two"],
        ["- smi-7d › main is a row", "- a"],
    ],
)
def test_lines_that_begin_alike_stay(listed: list[str]) -> None:
    assert lines("\n".join(listed)) == listed


def test_signs_of_terminals_and_web_pages_are_left_out() -> None:
    plain = [line for line in OUTPUT if line]
    for text in (
        "\n".join(f"\x1b(B\x1b[m{line}\x1b(B" for line in OUTPUT),  # tput sgr0
        "\x1b7\x1b=" + "\n".join(OUTPUT) + "\x1b>\x1b8",
        "\n".join(OUTPUT).replace(" ", "\u202f"),
        "\n".join(OUTPUT).replace(" ", "\u200b "),
        "\n".join(OUTPUT).replace("|", "｜"),
        "\r\r\n".join(OUTPUT),
        "\n".join(f"    {line}".rstrip() for line in OUTPUT),  # a block of Markdown
        "".join(f"\t{line}\n" for line in OUTPUT),
    ):
        assert lines(text) == plain


def test_lines_that_not_all_have_the_prefix_stay() -> None:
    mixed = ["2026-11-29T09:41:36Z one", "two"]
    assert lines("\n".join(mixed)) == mixed


def test_a_tag_that_is_a_device_stays() -> None:
    listed = ["GPU 0: A100 (UUID: x)", "GPU 1: A100 (UUID: y)"]
    assert lines("\n".join(f"Nov 29 09:41:36 {line}" for line in listed)) == listed


def test_lines_in_json_of_docker_and_the_journal() -> None:
    docker = [json.dumps({"log": f"{line}\n", "stream": "stdout", "time": "t"}) for line in OUTPUT]
    journal = [json.dumps({"MESSAGE": line, "__REALTIME_TIMESTAMP": "1"}) for line in OUTPUT]
    coloured = [
        json.dumps({"MESSAGE": list(f"\x1b[1m{line}".encode()), "__REALTIME_TIMESTAMP": "1"})
        for line in OUTPUT
    ]
    stern = [
        json.dumps({"message": line, "nodeName": "n", "podName": "p", "containerName": "c"})
        for line in OUTPUT
    ]
    loki = [json.dumps({"labels": {}, "line": line, "timestamp": "t"}) for line in OUTPUT]
    fluent = [json.dumps({"date": 1.5, "log": line, "stream": "stdout"}) for line in OUTPUT]
    plain = [line for line in OUTPUT if line]
    for form in (docker, journal, coloured, stern, loki, fluent):
        assert lines("\n".join(form)) == plain
    for entry in ({"MESSAGE": [300], "__REALTIME_TIMESTAMP": "1"}, {"log": 1, "time": "t"}, {"line": "a"}):
        assert lines(json.dumps(entry)) == [json.dumps(entry)]
    assert lines('{"card0": 1}') == ['{"card0": 1}']


def test_a_line_that_containerd_cut_is_joined() -> None:
    stamp = "2026-11-29T09:41:36.1Z stdout"
    assert lines(f"{stamp} P one \n{stamp} F two\n{stamp} F three") == ["one two", "three"]


def test_remarks_after_an_arrow_are_taken_away() -> None:
    assert lines("0 38.0C   ← idle\n1 39.0C  <-- busy\n0000:09:00.0 --> SN: x") == [
        "0 38.0C", "1 39.0C", "0000:09:00.0 --> SN: x",
    ]  # fmt: skip


def wrapped(content: list[str], width: int) -> str:
    return "\n".join(line[i : i + width] for line in content for i in range(0, max(len(line), 1), width))


def test_lines_that_a_terminal_wrapped_are_joined() -> None:
    rows = [f"| {n} {'x' * 90} |" for n in range(3)]
    found = ToolText.of(wrapped(rows, 80) + "\n", tool="x").unwrapped()
    assert found is not None
    assert ([line.text for line in found[0].lines], found[1]) == (rows, 80)


@pytest.mark.parametrize(
    "content",
    [
        ["x" * 80, "y" * 80],  # all of one length
        ["x" * 80, "y" * 80, ""],  # no rest below
        ["=" * 80, "title", "=" * 80, "text"],  # the rest of a rule would be a rule
        ["x" * 51, "y" * 51, "z"],  # too narrow
        [f"Name{' ' * 70} : abc", "Model : abc", f"Name{' ' * 70} : abd", "Model : abd"],
        ["short", "x" * 80, "z"],  # one line only
    ],
)
def test_lines_of_one_length_are_not_taken_for_wrapped_ones(content: list[str]) -> None:
    assert ToolText.of("\n".join(content), tool="x").unwrapped() is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Serial Number : 1025C9048791", "Serial Number : [redacted]"),
        ("<serial>1562849103700</serial>", "<serial>[redacted]</serial>"),
        (
            "0000:09:00.0 --> SN: 01-000206-07SCC2 --> OAM ID: 1",
            "0000:09:00.0 --> SN: [redacted] --> OAM ID: 1",
        ),
        ('"SerialNumber": "ab12"', '"SerialNumber": "[redacted]"'),
        ("| 0 | 02K15K624CV00304 | /dev/xpu0 |", "| 0 | [redacted] | /dev/xpu0 |"),
        ("| 0  NVIDIA A100-SXM4-80GB | 00000000:01:00.0 | 81920MiB |", None),
        ("npu-smi 24.1.rc1.b030, 0x30423042, MLU370-X8, K100_AI, 65520", None),
    ],
)
def test_serial_numbers_are_redacted(text: str, shown: str | None) -> None:
    assert redacted(text) == (text if shown is None else shown)
    read = ToolText.of(text, tool="x")
    assert redacted(str(read.error(read.lines[0], text))) == str(read.error(read.lines[0], text))


def test_boards_are_told_by_their_serials_and_not_named_by_them() -> None:
    assert board_names(["a", "b", "a", None, "c", "c"]) == [
        "board 0",
        None,
        "board 0",
        None,
        "board 1",
        "board 1",
    ]


def test_gaps_in_numbers_are_noted() -> None:
    assert (
        gap_notes([0, 1, 2], "cards") == gap_notes([], "cards") == gap_notes([1, 2], "cards", first=1) == []
    )
    assert gap_notes([0, 3], "cards") == [
        "cards 1, 2 not shown: hidden from this user, or lost from the recording"
    ]


def test_cells_are_taken_apart_in_one_way_or_not_at_all() -> None:
    assert splits("NODEPXB", "NODE|PXB") == [["NODE", "PXB"]]
    assert split_cells(["NODENODE", "", "0-3"], "NODE|PXB") == ["NODE", "NODE", "", "0-3"]
    assert split_cells(["AAA"], "A|AA") is None
