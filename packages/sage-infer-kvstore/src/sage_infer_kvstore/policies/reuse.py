"""The policy ``reuse``: blocks of prompts that are unlikely to be continued soon leave first."""

from __future__ import annotations

import bisect
import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from attrs import define, field

from sage_infer_kvstore.policies.reuse_model import ChainClass, ReuseModel

__all__ = ["LearnedReuse"]

_TURNS = (2, 3, 4, 6)
_FIRST_TOKENS = (1000, 4000, 8000, 16000)  # of a first turn
_MORE_TOKENS = (4000,)  # that a later turn adds
_UNKNOWN: ChainClass = (0, 0)  # of a block that no prompt contained yet
_REMEMBERED = 65_536

_Line = OrderedDict["_Chain", None]


@define(eq=False, slots=True)
class _Chain:
    """The blocks of one prompt that no later prompt contains.

    ``keys`` may contain blocks that later prompts took over. Blocks in the store are at positions up to ``last``.
    """

    of: ChainClass
    turn: int
    at: float  # of its last use
    length: int  # of the prompt, in blocks
    is_open: bool = False  # may still be continued
    keys: list[bytes] = field(factory=list)
    owned: int = 0
    held: int = 0  # of those that it owns, in the store
    last: int = -1


class LearnedReuse:
    """Learns from all requests how soon a prompt is continued, by its turn, the tokens that it added, and its age.

    The prompt whose reuse is least likely per second of memory loses its blocks first, the last block of the prompt
    first. Prompts whose blocks have left the store are remembered for learning, up to a bound. Until something is
    learned, the order is that of the last use of prompts.

    Args:
        page_size: tokens per block.
        remembered: blocks that are remembered besides those in the store, and as many again as are in the store.
    """

    def __init__(self, page_size: int, *, remembered: int = _REMEMBERED) -> None:
        self._page_size, self._remembered = page_size, remembered
        self._model = ReuseModel()
        self._chain_of: dict[bytes, _Chain] = {}
        self._held: set[bytes] = set()
        self._lines: dict[ChainClass, _Line] = {}  # chains with blocks in the store, by last use
        self._open: _Line = OrderedDict()  # chains that may be continued, by arrival

    def asked(self, keys: Sequence[bytes], now: float) -> None:
        if not keys:
            return
        known = len(keys)
        while known and keys[known - 1] not in self._chain_of:
            known -= 1
        parent = self._chain_of[keys[known - 1]] if known else None
        if parent is None or 2 * known <= parent.length:  # it only has the same beginning
            turn, new = 1, len(keys)
        else:
            turn, new = parent.turn + 1, len(keys) - known
            self._continued(parent, now)
        of = _class_of(turn, new * self._page_size)
        chain = _Chain(of=of, turn=turn, at=now, length=len(keys), is_open=True)
        self._open[chain] = None
        for key in keys:
            self._own(chain, key, now)
        self._forget(now)
        if self._model.is_due:
            self._model.rebuild((chain.of, now - chain.at) for chain in self._open)

    def add(self, key: bytes, now: float) -> None:
        chain = self._chain_of.get(key)
        if chain is None:
            chain = _Chain(of=_UNKNOWN, turn=0, at=now, length=1)
            self._own(chain, key, now)
        if key not in self._held:
            self._held.add(key)
            self._entered(chain)
        self._use(chain, now)

    def used(self, key: bytes, now: float) -> None:
        if key in self._held:
            self._use(self._chain_of[key], now)

    def remove(self, key: bytes) -> None:
        if key in self._held:
            self._held.remove(key)
            chain = self._chain_of[key]
            self._left(chain)
            if not chain.held and not chain.is_open:
                self._drop(chain)

    def order(self, now: float) -> Iterator[bytes]:
        lines = [iter(line) for line in self._lines.values()]
        heads: list[tuple[float, float, int, _Chain]] = []

        def push(number: int) -> None:
            chain = next(lines[number], None)
            if chain is not None:
                value = self._model.value(chain.of, now - chain.at)
                heapq.heappush(heads, (value, chain.at, number, chain))

        for number in range(len(lines)):
            push(number)
        while heads:
            *_, number, chain = heapq.heappop(heads)
            yield from self._blocks_of(chain)
            push(number)

    def _blocks_of(self, chain: _Chain) -> Iterator[bytes]:
        while chain.last >= 0 and not self._has(chain, chain.keys[chain.last]):
            chain.last -= 1
        for position in range(chain.last, -1, -1):
            if self._has(chain, chain.keys[position]):
                yield chain.keys[position]

    def _has(self, chain: _Chain, key: bytes) -> bool:
        return key in self._held and self._chain_of[key] is chain

    # --- chains

    def _own(self, chain: _Chain, key: bytes, now: float) -> None:
        before = self._chain_of.get(key)
        if before is chain:
            return  # the prompt contains it twice
        self._chain_of[key] = chain
        chain.keys.append(key)
        chain.owned += 1
        if key in self._held:
            self._entered(chain)
            self._use(chain, now)
        if before is not None:
            before.owned -= 1
            if key in self._held:
                self._left(before)
            if 2 * before.owned < len(before.keys):
                before.keys = [key for key in before.keys if self._chain_of.get(key) is before]
                before.last = len(before.keys) - 1
            if not before.owned:
                self._continued(before, now)
            elif not before.held and not before.is_open:
                self._drop(before)

    def _entered(self, chain: _Chain) -> None:
        chain.held += 1
        chain.last = len(chain.keys) - 1

    def _left(self, chain: _Chain) -> None:
        chain.held -= 1
        if not chain.held:
            del self._lines[chain.of][chain]

    def _use(self, chain: _Chain, now: float) -> None:
        chain.at = now
        line = self._lines.setdefault(chain.of, OrderedDict())
        line[chain] = None
        line.move_to_end(chain)

    def _continued(self, chain: _Chain, now: float) -> None:
        if chain.is_open:
            self._model.continued(chain.of, now - chain.at)
            self._close(chain)

    def _forget(self, now: float) -> None:
        while len(self._chain_of) > self._remembered + 2 * len(self._held) and self._open:
            chain = next(iter(self._open))
            self._model.forgotten(chain.of, now - chain.at)
            self._close(chain)

    def _close(self, chain: _Chain) -> None:
        chain.is_open = False
        del self._open[chain]
        if not chain.held:
            self._drop(chain)

    def _drop(self, chain: _Chain) -> None:
        for key in chain.keys:
            if self._chain_of.get(key) is chain:
                del self._chain_of[key]
        chain.keys.clear()
        chain.owned = 0


def _class_of(turn: int, new_tokens: int) -> ChainClass:
    edges = _FIRST_TOKENS if turn == 1 else _MORE_TOKENS
    return 1 + bisect.bisect_right(_TURNS, turn), bisect.bisect_right(edges, new_tokens)
