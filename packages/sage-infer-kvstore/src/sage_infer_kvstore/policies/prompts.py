"""Blocks in the order of the prompts that contain them: the base of policies that know the requests."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, field

from sage_infer_kvstore.policies.base import Request

__all__ = ["REMEMBERED", "Prompt", "PromptOrder"]

REMEMBERED = 65_536
"""Blocks that are remembered by default."""

_Line = OrderedDict["Prompt", None]


@define(eq=False, slots=True)
class Prompt:
    """The blocks of one prompt that no later prompt has taken over.

    ``keys`` may contain blocks that later prompts took over. Blocks in the store are at positions up to ``last``.
    """

    of: Any  # its class, hashable
    turn: int
    at: float  # of its last use
    length: int  # of the prompt, in blocks
    is_open: bool = False  # may still be continued
    keys: list[bytes] = field(factory=list)
    owned: int = 0
    held: int = 0  # of those that it owns, in the store
    last: int = -1


class PromptOrder:
    """The prompt with the smallest value loses its blocks first, the last block of the prompt first.

    Prompts of a class are in a line by their last use, so that choosing a victim costs a comparison per class. Prompts
    whose blocks are not in the store are remembered up to a bound: their blocks may still come.

    Args:
        page_size: tokens per block.
        remembered: blocks that are remembered besides those in the store, and as many again as are in the store.
    """

    def __init__(self, page_size: int, *, remembered: int = REMEMBERED) -> None:
        self._page_size, self._remembered = page_size, remembered
        self._prompt_of: dict[bytes, Prompt] = {}
        self._held: set[bytes] = set()
        self._lines: dict[Any, _Line] = {}  # prompts with blocks in the store, by last use
        self._open: _Line = OrderedDict()  # prompts that may be continued, by arrival

    def _class_of(self, request: Request | None, *, turn: int, new: int, length: int) -> Any:
        """Class of a prompt.

        Args:
            request: what is known of its request; None for a block that no request has named.
            turn: number of prompts that it continues, and itself.
            new: blocks that it adds.
            length: its blocks.
        """
        raise NotImplementedError

    def _value(self, prompt: Prompt, now: float) -> float:
        """Value of a prompt, which does not fall along the line of its class."""
        raise NotImplementedError

    def _used(self, prompt: Prompt) -> None:
        """A prompt was used; it moves to the end of its line."""

    def _takes(self, prompt: Prompt, before: Prompt) -> bool:
        """Whether a new prompt takes over the blocks that it shares with an earlier one."""
        return True

    def _ended(self, prompt: Prompt, now: float, *, is_continued: bool) -> None:
        """A prompt was continued, or is no longer observed."""

    def asked(self, keys: Sequence[bytes], now: float, request: Request | None = None) -> None:
        if not keys:
            return
        known = len(keys)
        while known and keys[known - 1] not in self._prompt_of:
            known -= 1
        parent = self._prompt_of[keys[known - 1]] if known else None
        if parent is None or 2 * known <= parent.length:  # it only has the same beginning
            turn, new = 1, len(keys)
        else:
            turn, new = parent.turn + 1, len(keys) - known
            self._continued(parent, now)
        of = self._class_of(request or Request(), turn=turn, new=new, length=len(keys))
        prompt = Prompt(of=of, turn=turn, at=now, length=len(keys), is_open=True)
        self._open[prompt] = None
        for key in keys:
            self._own(prompt, key, now)
        if not prompt.owned:
            self._close(prompt)
        self._forget(now)

    def add(self, key: bytes, now: float) -> None:
        prompt = self._prompt_of.get(key)
        if prompt is None:
            of = self._class_of(None, turn=0, new=1, length=1)
            prompt = Prompt(of=of, turn=0, at=now, length=1)
            self._own(prompt, key, now)
        if key not in self._held:
            self._held.add(key)
            self._entered(prompt)
        self._use(prompt, now)

    def used(self, key: bytes, now: float) -> None:
        if key in self._held:
            self._use(self._prompt_of[key], now)

    def remove(self, key: bytes) -> None:
        if key in self._held:
            self._held.remove(key)
            prompt = self._prompt_of[key]
            self._left(prompt)
            if not prompt.held and not prompt.is_open:
                self._drop(prompt)

    def order(self, now: float) -> Iterator[bytes]:
        lines = [iter(line) for line in self._lines.values()]
        heads: list[tuple[float, float, int, Prompt]] = []

        def push(number: int) -> None:
            prompt = next(lines[number], None)
            if prompt is not None:
                heapq.heappush(heads, (self._value(prompt, now), prompt.at, number, prompt))

        for number in range(len(lines)):
            push(number)
        while heads:
            *_, number, prompt = heapq.heappop(heads)
            yield from self._blocks_of(prompt)
            push(number)

    def _blocks_of(self, prompt: Prompt) -> Iterator[bytes]:
        while prompt.last >= 0 and not self._has(prompt, prompt.keys[prompt.last]):
            prompt.last -= 1
        for position in range(prompt.last, -1, -1):
            if self._has(prompt, prompt.keys[position]):
                yield prompt.keys[position]

    def _has(self, prompt: Prompt, key: bytes) -> bool:
        return key in self._held and self._prompt_of[key] is prompt

    # --- prompts

    def _own(self, prompt: Prompt, key: bytes, now: float) -> None:
        before = self._prompt_of.get(key)
        if before is prompt:
            return  # the prompt contains it twice
        if before is not None and not self._takes(prompt, before):
            if key in self._held:
                self._use(before, now)
            return
        self._prompt_of[key] = prompt
        prompt.keys.append(key)
        prompt.owned += 1
        if key in self._held:
            self._entered(prompt)
            self._use(prompt, now)
        if before is not None:
            before.owned -= 1
            if key in self._held:
                self._left(before)
            if 2 * before.owned < len(before.keys):
                before.keys = [key for key in before.keys if self._prompt_of.get(key) is before]
                before.last = len(before.keys) - 1
            if not before.owned:
                self._continued(before, now)
            elif not before.held and not before.is_open:
                self._drop(before)

    def _entered(self, prompt: Prompt) -> None:
        prompt.held += 1
        prompt.last = len(prompt.keys) - 1

    def _left(self, prompt: Prompt) -> None:
        prompt.held -= 1
        if not prompt.held:
            del self._lines[prompt.of][prompt]

    def _use(self, prompt: Prompt, now: float) -> None:
        prompt.at = now
        line = self._lines.setdefault(prompt.of, OrderedDict())
        line[prompt] = None
        line.move_to_end(prompt)
        self._used(prompt)

    def _continued(self, prompt: Prompt, now: float) -> None:
        if prompt.is_open:
            self._ended(prompt, now, is_continued=True)
            self._close(prompt)

    def _forget(self, now: float) -> None:
        while len(self._prompt_of) > self._remembered + 2 * len(self._held) and self._open:
            prompt = next(iter(self._open))
            self._ended(prompt, now, is_continued=False)
            self._close(prompt)

    def _close(self, prompt: Prompt) -> None:
        prompt.is_open = False
        del self._open[prompt]
        if not prompt.held:
            self._drop(prompt)

    def _drop(self, prompt: Prompt) -> None:
        for key in prompt.keys:
            if self._prompt_of.get(key) is prompt:
                del self._prompt_of[key]
        prompt.keys.clear()
        prompt.owned = 0
