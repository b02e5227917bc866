"""``hy-smi --show… --json``: an object of cards; and ``--csv``: one line per card."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Any

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import UNCOUNTED, Line, ToolText, build_profile, gap_notes, json_text, need_rows

from sage_infer_hygon.dcu import describe, refuse_amd, sources

__all__ = ["Cards", "is_csv", "is_json", "json_facts", "read_csv", "read_json"]

_CARD = re.compile(r"card(\d+)")

Cards = dict[int, dict[str, tuple[Line | None, str]]]


def is_json(text: ToolText) -> bool:
    return json_text.is_json(text) and text.search(r'"(card\d+|system)"\s*:\s*\{') is not None


def read_json(text: ToolText) -> HardwareProfile:
    """The cards of the document.

    Raises:
        ToolOutputError: it is truncated, a member is malformed, or the cards are another vendor's.
    """
    refuse_amd(text, labels=False)
    devices, notes = describe(text, json_facts(text))
    notes += _gaps(devices)
    return build_profile(
        devices, sources=sources(text), notes=[*notes, *_numbering(devices[0].index if devices else 0)]
    )


def json_facts(text: ToolText) -> Cards:
    """Return the facts of each card in the document."""
    data = json_text.load(text)
    if not isinstance(data, dict):
        raise text.error(None, "the document must be an object of cards")
    cards: Cards = {}
    for key, facts in data.items():
        match = _CARD.fullmatch(key)
        if match is None:
            continue  # "system" has facts about the machine
        if not isinstance(facts, dict):
            raise text.error(None, f"{key} must be an object")
        cards[int(match[1])] = {
            " ".join(name.split()).lower(): (None, _plain(value)) for name, value in facts.items()
        }
    return cards


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()


def is_csv(text: ToolText) -> bool:
    return text.lines[0].text.lower().startswith("device,")


def read_csv(text: ToolText) -> HardwareProfile:
    """The cards of the lines.

    Raises:
        ToolOutputError: the cells of a line do not match the heading.
    """
    refuse_amd(text, labels="gpu" in text.lines[0].text.lower())
    heading = next(csv.reader([text.lines[0].text]))
    cards: Cards = {}
    for line in text.lines[1:]:
        cells = next(csv.reader([line.text]))
        match = _CARD.fullmatch(cells[0].strip())
        if match is None or len(cells) != len(heading):
            raise text.error(line, f"a card and {len(heading) - 1} cells under {','.join(heading)}")
        if int(match[1]) in cards:
            raise text.error(line, f"one line for {cells[0]}")
        cards[int(match[1])] = {
            " ".join(name.split()).lower(): (line, cell.strip())
            for name, cell in zip(heading[1:], cells[1:], strict=True)
        }
    need_rows(text, cards, "a card")
    devices, notes = describe(text, cards)
    notes += [UNCOUNTED, *_gaps(devices)]
    return build_profile(
        devices, sources=sources(text), notes=[*notes, *_numbering(devices[0].index if devices else 0)]
    )


def _gaps(devices: Sequence[AcceleratorDescriptor]) -> list[str]:
    """DTK before 23 counts cards from 1."""
    numbers = [device.index for device in devices]
    return gap_notes(numbers, "cards", first=min(1, *numbers) if numbers else 0)


def _numbering(first: int) -> list[str]:
    return [f"the first card shown is number {first}; HIP counts devices from 0"] if first else []
