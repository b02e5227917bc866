"""Parts of the load generator: events, replies, lengths, arrivals, percentiles, ticks, the plot."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ET
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest
from sage_infer_serve.bench.load import Outcome, Run
from sage_infer_serve.bench.plot import draw, log_ticks, nice_ticks
from sage_infer_serve.bench.replies import BadAnswer, StreamReader, error_message, model_ids, read_answer
from sage_infer_serve.bench.report import Distribution, percentile, report_on
from sage_infer_serve.bench.sse import EventParser
from sage_infer_serve.bench.workload import LEAST, MOST_INPUT, MOST_TOTAL, Lengths, Workload, arrivals
from sage_infer_serve.http.client import Server

# --- server-sent events

line_texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def event_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and the data of its events by the standard's own words."""
    text, expected = "", []
    for lines in draw(st.lists(st.lists(line_texts, min_size=1, max_size=3), max_size=5)):
        noise = draw(st.sampled_from(["", ": comment", "event: message", "id: 7", "retry: 10"]))
        for line in [noise] if noise else []:
            text += line + draw(line_ends)
        for line in lines:
            blank = draw(st.booleans()) or line.startswith(" ")
            text += f"data:{' ' if blank else ''}{line}" + draw(line_ends)
        # A blank line's \n behind a \r would be that line's end, and no blank line.
        text += draw(line_ends.filter(lambda end, before=text: end != "\n" or not before.endswith("\r")))
        expected.append("\n".join(lines).encode())
    return text.encode(), expected


@given(event_streams(), st.data())
def test_events_are_found_however_the_stream_is_cut(
    stream: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    text, expected = stream
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    parser = EventParser()
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert [event for piece in pieces for event in parser.feed(piece)] == expected


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: never ended\n", []),
        (b"\n\n\n\n: only comments\n\n", []),
        (b"data\n\ndata:\n\n", [b"", b""]),
        (b"\xef\xbb\xbfdata: behind a byte order mark\n\n", [b"behind a byte order mark"]),
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"database: not data\n\n", []),
    ],
)
def test_events_by_example(text: bytes, events: list[bytes]) -> None:
    assert EventParser().feed(text) == events


@given(st.lists(st.binary(max_size=30)))
def test_any_bytes_are_read_without_an_error(pieces: list[bytes]) -> None:
    parser = EventParser()
    for piece in pieces:
        parser.feed(piece)


# --- replies


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(**fields: object) -> bytes:
    return chunk(choices=[{"index": 0, "delta": fields}])


def test_a_stream_is_timed_by_chunks_that_have_text() -> None:
    reader = StreamReader()
    reader.feed(delta(role="assistant", content=""), 1.0)
    reader.feed(delta(content="a"), 2.0)
    reader.feed(delta(content="b") + delta(content="c"), 2.5)
    reader.feed(
        chunk(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 4}) + b"data: [DONE]\n\n", 9.0
    )
    reader.end()
    assert (reader.first, list(reader.gaps), reader.chunks) == (2.0, [0.5, 0.0], 3)
    assert reader.usage is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (5, 4)


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning", "refusal"])
def test_every_kind_of_text_counts(name: str) -> None:
    reader = StreamReader()
    reader.feed(delta(**{name: "x"}), 1.0)
    assert reader.first == 1.0


def test_tool_calls_and_completions_count_too() -> None:
    for data in (delta(tool_calls=[{"index": 0}]), chunk(choices=[{"index": 0, "text": "x"}])):
        reader = StreamReader()
        reader.feed(data, 1.0)
        assert reader.first == 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "stream without an answer"),
        (delta(content="half"), "stream truncated"),
        (delta(content="half") + chunk(error={"message": "engine died"}), "stream: engine died"),
        (b"data: {not json\n\n", "does not follow the API"),
        (b'data: {"choices": 3}\n\n', "does not follow the API"),
        (chunk(error={"message": "first"}) + chunk(error={"message": "second"}), "stream: first"),
    ],
)
def test_a_stream_that_is_an_error(data: bytes, message: str) -> None:
    reader = StreamReader()
    reader.feed(data, 1.0)
    with pytest.raises(BadAnswer, match=message):
        reader.end()


def test_a_finish_reason_ends_a_stream_without_done() -> None:
    reader = StreamReader()
    reader.feed(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]), 1.0)
    reader.end()
    assert reader.chunks == 0


def test_answers_in_one_piece() -> None:
    usage = read_answer(
        b'{"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}', embeddings=False
    )
    assert usage is not None
    assert usage.completion_tokens == 2
    assert read_answer(b'{"data": [{"embedding": [1.0]}]}', embeddings=True) is None
    for body, embeddings in ((b'{"choices": []}', False), (b'{"choices": [{}]}', True), (b"<html>", False)):
        with pytest.raises(BadAnswer):
            read_answer(body, embeddings=embeddings)
    with pytest.raises(BadAnswer, match="no room"):
        read_answer(b'{"error": {"message": "no room"}}', embeddings=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "of OpenAI"}}', "of OpenAI"),
        (b'{"object": "error", "message": "of older vLLM"}', "of older vLLM"),
        (b'{"detail": "of FastAPI"}', "of FastAPI"),
        (b'{"error": "a string"}', "a string"),
        (b"<html>\n  bad gateway </html>", "<html> bad gateway </html>"),
        (b"", "no message"),
        (b'{"error": null}', '{"error": null}'),
        (b"[1]", "[1]"),
        (b"\xff\xfe", "��"),
    ],
)
def test_error_messages(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_a_long_message_is_cut() -> None:
    assert len(error_message(b"x" * 5000)) == 200


def test_model_ids() -> None:
    assert model_ids(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    for body in (b"{}", b"[]", b"nothing", b'{"data": [1]}'):
        with pytest.raises(BadAnswer):
            model_ids(body)


# --- the workload


def sizes(lengths: Lengths, count: int) -> list[tuple[int, int]]:
    from random import Random

    rng = Random(1)
    return [lengths.draw(rng) for _ in range(count)]


def test_lengths_are_like_sharegpts() -> None:
    """The mean is below the paper's, as what vLLM's benchmark leaves out is long."""
    drawn = sizes(Lengths(), 4000)
    inputs, outputs = zip(*drawn, strict=True)
    assert 130 < statistics.mean(inputs) < 170
    assert 310 < statistics.mean(outputs) < 345
    assert statistics.median(inputs) < statistics.mean(inputs)
    assert all(LEAST <= i <= MOST_INPUT and o >= LEAST and i + o <= MOST_TOTAL for i, o in drawn)


def test_lengths_can_be_fixed_and_scaled() -> None:
    free = sizes(Lengths(), 50)
    assert [o for _, o in sizes(Lengths(input=7), 50)] == [o for _, o in free]
    assert {i for i, _ in sizes(Lengths(input=7), 50)} == {7}
    halves = sizes(Lengths(scale=0.5), 50)
    assert all(abs(h[0] - f[0] / 2) <= 1 for h, f in zip(halves, free, strict=True))
    assert all(min(pair) >= 1 for pair in sizes(Lengths(scale=0.001), 50))


def test_a_seed_makes_the_same_requests() -> None:
    work = Workload(endpoint="chat", model="m", lengths=Lengths())
    first, again, other = (list(itertools.islice(work.requests(seed), 5)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({request.body[:200] for request in first}) == 5


def test_bodies() -> None:
    def body(endpoint: str, **settings: object) -> dict[str, object]:
        lengths = Lengths(input=6, output=9)
        work = Workload(endpoint=endpoint, model="m", lengths=lengths, **settings)  # type: ignore[arg-type]
        data: dict[str, object] = json.loads(next(work.requests(0)).body)
        return data

    chat = body("chat")
    assert chat["messages"][0]["content"].count(" ") == 5  # type: ignore[index]
    assert (chat["max_tokens"], chat["temperature"], chat["stream"]) == (9, 0, True)
    assert chat["stream_options"] == {"include_usage": True}
    plain = body("completions", stream=False, ignore_eos=True)
    assert isinstance(plain["prompt"], str)
    assert "stream" not in plain
    assert plain["ignore_eos"] is True
    texts = body("embeddings", batch=3)["input"]
    assert isinstance(texts, list)
    assert [len(text.split()) for text in texts] == [6, 6, 6]


def test_arrivals_are_poisson() -> None:
    times = list(itertools.islice(arrivals(20.0, 3), 4000))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.08)  # an exponential's spread is its mean
    assert times == list(itertools.islice(arrivals(20.0, 3), 4000))


# --- the server's address


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("https://host/prefix/v1/", "https://host:443/prefix"),
        ("http://[::1]:81", "http://[::1]:81"),
    ],
)
def test_urls(url: str, server: str) -> None:
    assert str(Server.parse(url)) == server


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://host:port", "http://host?x=1", "http://u:p@host"]
)
def test_invalid_urls(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--url"):
        Server.parse(url)


# --- figures

samples = st.lists(st.floats(0, 1e6), min_size=2, max_size=60)


@given(samples, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_percentiles_are_those_of_the_standard_library(values: list[float], share: float) -> None:
    expected = statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]
    assert percentile(sorted(values), share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_percentiles_by_example() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, share) for share in (0, 0.5, 0.99, 1)] == [1, 50.5, pytest.approx(99.01), 100]
    assert percentile([3.0], 0.99) == 3.0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_distribution_is_ordered(values: list[float]) -> None:
    d = Distribution.of(values)
    assert d is not None
    assert min(values) <= d.p50 <= d.p90 <= d.p95 <= d.p99 <= d.max == max(values)
    assert d.count == len(values)


def test_no_samples_have_no_distribution() -> None:
    assert Distribution.of([]) is None


def outcome(due: float, sent: float, first: float, gaps: list[float], **fields: object) -> Outcome:
    ended = first + sum(gaps)
    return Outcome(due=due, sent=sent, first=first, gaps=array("d", gaps), ended=ended, **fields)  # type: ignore[arg-type]


def toy_run() -> Run:
    good = {"prompt_tokens": 10, "counted": True}
    return Run(
        began=100.0,
        ended=110.0,
        cpu_s=1.0,
        outcomes=[
            outcome(100.0, 100.0, 100.5, [0.1, 0.1], output_tokens=3, **good),
            outcome(101.0, 103.0, 103.5, [0.2, 0.2, 0.2], output_tokens=7, **good),
            Outcome(due=102.0, sent=102.0, ended=102.001, error="HTTP 429: busy"),
            Outcome(due=103.0, sent=103.0, ended=109.0, error="HTTP 429: busy"),
            Outcome(due=104.0, sent=104.0, ended=104.5, error="stream: engine died"),
        ],
    )


def test_errors_are_counted_and_in_no_figure() -> None:
    report = report_on(toy_run())
    assert (report.answered, report.failed) == (2, 3)
    assert report.errors == {"HTTP 429: busy": 2, "stream: engine died": 1}
    assert report.e2e_s is not None
    assert report.e2e_s.count == 2
    assert report.requests_per_s == pytest.approx(0.2)
    assert report.output_tokens_per_s == pytest.approx(1.0)
    assert report.prompt_tokens_per_s == pytest.approx(2.0)


def test_latencies_count_from_when_a_request_was_due() -> None:
    """The second request was sent two seconds late: its caller waited for these, too."""
    report = report_on(toy_run())
    assert report.ttft_s is not None
    assert report.e2e_s is not None
    assert report.late_s is not None
    assert report.ttft_s.max == pytest.approx(2.5)
    assert report.e2e_s.max == pytest.approx(3.1)
    assert report.late_s.max == pytest.approx(2.0)


def test_time_between_chunks_and_per_token_differ_where_chunks_hold_several() -> None:
    report = report_on(toy_run())
    assert report.itl_s is not None
    assert report.tpot_s is not None
    assert (report.itl_s.count, report.itl_s.mean) == (5, pytest.approx(0.16))
    assert (report.tpot_s.count, report.tpot_s.mean) == (2, pytest.approx(0.1))


def test_warnings_say_when_the_figures_are_the_load_generators_own() -> None:
    run = toy_run()
    assert [w for w in report_on(run).warnings() if "of a core" in w] == []
    run.cpu_s = 9.5
    busy, late = report_on(run).warnings()
    assert "95% of a core" in busy
    assert "late (latencies" in late


def test_table() -> None:
    columns, rows = report_on(toy_run()).table()
    assert [row[0] for row in rows] == [
        "time to first token",
        "between chunks",
        "per output token",
        "whole request",
    ]
    assert rows[0][columns.index("SAMPLES")].strip() == "2"
    assert all(len({len(row[n]) for row in [columns, *rows]}) == 1 for n in range(1, len(columns)))


def test_a_run_without_answers_has_a_report() -> None:
    report = report_on(
        Run(began=1.0, ended=2.0, outcomes=[Outcome(due=1.0, sent=1.0, ended=1.5, error="no")])
    )
    assert report.table()[1] == []
    assert report.lengths() == ""
    assert report.throughput() == "0.00 requests/s"


def test_throughput_names_missing_counts() -> None:
    run = Run(began=0.0, ended=1.0, outcomes=[outcome(0.0, 0.0, 0.1, [0.1], output_tokens=2)])
    assert "chunks (the server counts no tokens)/s" in report_on(run).throughput()


# --- the drawing


@given(st.floats(1e-6, 1e4), st.floats(1.5, 1e6))
def test_log_ticks_lie_within(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert all(low <= tick <= low * factor for tick in ticks)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 18


@given(st.floats(1e-6, 1e9))
def test_nice_ticks_reach_the_top(high: float) -> None:
    ticks = nice_ticks(high)
    assert ticks[0] == 0
    assert ticks[-1] >= high * (1 - 1e-6)
    assert 2 <= len(ticks) <= 7
    step = f"{ticks[1]:e}"
    assert float(step.split("e")[0]) in (1, 2, 5)


def test_a_drawing_has_a_panel_a_figure_and_marks_errors() -> None:
    run = toy_run()
    svg = draw("a <title> & more", run, report_on(run))
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a <title> & more"
    for panel in (
        "Time to first token",
        "Between chunks",
        "Whole request",
        "Output tokens per second",
        "● 3 failed",
    ):
        assert panel in texts
    assert not re.search(r"(nan|inf)", svg)


def test_a_drawing_of_errors_only() -> None:
    run = Run(began=0.0, ended=1.0, outcomes=[Outcome(due=0.0, sent=0.0, ended=0.5, error="no")])
    svg = draw("t", run, report_on(run))
    assert "Requests per second" in svg
    assert ET.fromstring(svg).get("height") is not None
    assert math.isfinite(float(ET.fromstring(svg).get("height", "nan")))


@pytest.mark.parametrize(
    ("chunk", "counted", "usage"),
    [
        ({"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, 1, (3, 2)),
        ({"choices": [None]}, 1, None),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": None}}, 1, None),
        ({"choices": [], "usage": {"prompt_tokens": 3.0, "completion_tokens": 2.0}}, 1, (3, 2)),
        ({"choices": [], "usage": []}, 1, None),
        ({"type": "ping"}, 1, None),
        ({"choices": [{"delta": {"content": [{"type": "text", "text": "a"}]}}]}, 2, None),
        ({"choices": [{"delta": {"content": []}}]}, 1, None),
        ({"choices": [{"delta": {"content": None, "reasoning": {"text": "x"}}}]}, 2, None),
        ({"choices": [{"delta": {"content": "a", "tool_calls": {}}, "finish_reason": 1}]}, 2, None),
        ({"choices": [{"delta": None, "text": None}], "error": None}, 1, None),
    ],
)
def test_chunks_of_other_servers(
    chunk: dict[str, object], counted: int, usage: tuple[int, int] | None
) -> None:
    reader = StreamReader()
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]}
    for at, data in enumerate((json.dumps(first), json.dumps(chunk), "[DONE]")):
        reader.feed(f"data: {data}\n\n".encode(), float(at))
    reader.end()
    assert reader.chunks == counted
    found = None if reader.usage is None else (reader.usage.prompt_tokens, reader.usage.completion_tokens)
    assert found == usage


def test_whole_answers_of_other_servers() -> None:
    body = b'{"choices": [{}], "usage": {"prompt_tokens": 3.0, "completion_tokens": 2.0}}'
    usage = read_answer(body, embeddings=False)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"cached_tokens": 7}, 7),
        ({"cached_tokens": None}, None),
        ({}, None),
        (None, None),
        ([], None),
        ({"cached_tokens": True}, None),
    ],
)
def test_cached_tokens_of_servers_that_count_them(details: object, cached: int | None) -> None:
    body = {
        "choices": [{}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details},
    }
    usage = read_answer(json.dumps(body).encode(), embeddings=False)
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens) == (9, cached)
