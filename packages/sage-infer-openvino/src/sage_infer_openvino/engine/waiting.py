"""The scheduler's queue: sequences in line by call, and the call whose turn it is."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator

from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

__all__ = ["WaitingLines", "turn"]


def turn(sequence: SequenceState) -> tuple[int, float, int]:
    """Order of arrival within a priority."""
    request = sequence.request
    return (request.priority, request.arrived_at, sequence.index)


class WaitingLines:
    """Waiting sequences, one line per call: the ``n`` completions of its prompts.

    The next sequence is one of the tenant, and there of the call, with the fewest running sequences, so that no
    call's size makes others wait; between equals the earlier one is next. Priorities order the calls of a tenant.
    """

    def __init__(self) -> None:
        self._lines: dict[object, list[SequenceState]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __contains__(self, sequence: SequenceState) -> bool:
        return sequence in self._lines.get(sequence.request.call, ())

    def __iter__(self) -> Iterator[SequenceState]:
        """In the order of arrival. Safe while another thread changes the lines, which it may miss."""
        return iter(sorted((s for line in list(self._lines.values()) for s in list(line)), key=turn))

    def tenants(self) -> set[str]:
        """Tenants of the waiting sequences."""
        return {request.tenant for request in self.requests()}

    def requests(self) -> list[EngineRequest]:
        """The first request of each waiting call."""
        return [line[0].request for line in self._lines.values()]

    def add(self, sequence: SequenceState) -> None:
        bisect.insort(self._lines.setdefault(sequence.request.call, []), sequence, key=turn)

    def remove(self, sequence: SequenceState) -> None:
        line = self._lines[sequence.request.call]
        line.remove(sequence)
        if not line:
            del self._lines[sequence.request.call]

    def next(
        self, running: list[SequenceState], is_ready: Callable[[SequenceState], bool]
    ) -> SequenceState | None:
        """The sequence to start next besides those that run; None if none is ready.

        Completions of one prompt are ready together, so that only the first one of each prompt is asked about.
        """
        calls = Counter(sequence.request.call for sequence in running)
        tenants = Counter(sequence.request.tenant for sequence in running)

        def share(line: list[SequenceState]) -> tuple[int, int, int, float, int]:
            request = line[0].request
            priority, arrived_at, index = turn(line[0])
            return (tenants[request.tenant], priority, calls[request.call], arrived_at, index)

        lines = list(self._lines.values())
        while lines:
            line = min(lines, key=share)
            asked = None
            for sequence in line:
                if sequence.request is asked and not sequence.computed:
                    continue
                if is_ready(sequence):
                    return sequence
                asked = sequence.request
            lines.remove(line)
        return None
