"""Stop strings: the stream is the whole text cut at the first stop, whatever the pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sage_infer.sdk import StopStringDetector

LETTERS = st.text("ab\N{SNOWMAN}", max_size=12)


def cut(text: str, stops: list[str]) -> str | None:
    """The text before the stop string that is complete first; None where there is none."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)]
    return None


@given(st.lists(LETTERS), st.lists(LETTERS.filter(bool), min_size=1, max_size=3))
def test_equals_cutting_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    stream, shown, stopped = StopStringDetector(tuple(stops)), "", False
    expected = cut("".join(pieces), stops)
    for piece in pieces:
        text, stopped = stream.push(piece)
        shown += text
        # What has been shown is never taken back.
        assert (expected if expected is not None else "".join(pieces)).startswith(shown)
        if stopped:
            break
    assert stopped == (expected is not None)
    assert shown + ("" if stopped else stream.flush()) == ("".join(pieces) if expected is None else expected)


def test_text_is_held_no_longer_than_needed() -> None:
    stream = StopStringDetector(("abc", "xyz"))
    assert stream.push("1 ab") == ("1 ", False)
    assert stream.push("d x") == ("abd ", False)
    assert stream.flush() == "x"
    assert stream.flush() == ""
