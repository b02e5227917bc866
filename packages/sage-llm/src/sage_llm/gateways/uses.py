"""What all gateways have used of the limits of keys, in the process that owns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sage_llm.gateways.messages import Uses
from sage_llm.gateways.shares import Use, total

__all__ = ["UseBoard"]


class UseBoard:
    """Passes on to each gateway what the others have used.

    Args:
        gateways: number of gateways.
    """

    def __init__(self, gateways: int) -> None:
        self._of: list[dict[str, Use]] = [{} for _ in range(gateways)]
        self._past: dict[str, Use] = {}  # of gateways that have ended
        self._news: list[set[str]] = [set() for _ in range(gateways)]  # keys to tell a gateway of

    def reported(self, number: int, uses: Mapping[str, Use]) -> None:
        """A gateway has used so much since its start."""
        self._of[number].update(uses)
        self._mark(uses, number)

    def ended(self, number: int) -> None:
        """A gateway has ended, and with it its open requests."""
        uses, self._of[number] = self._of[number], {}
        for name, use in uses.items():
            self._past[name] = total([self._past.get(name, Use()), use._replace(open=0)])
        self._mark(uses, number)

    def started(self, number: int) -> Uses:
        """What a gateway that starts is to know."""
        self._news[number].clear()
        names = {*self._past, *(name for uses in self._of for name in uses)}
        return Uses(self._others(number, names), is_past=True)

    def tell(self, number: int, send: Callable[[Uses], bool]) -> None:
        """Tell a gateway the news, if there are any; they are kept if ``send`` returns False."""
        if self._news[number] and send(Uses(self._others(number, self._news[number]))):
            self._news[number].clear()

    def _mark(self, names: Mapping[str, Use], by: int) -> None:
        for number, news in enumerate(self._news):
            if number != by:
                news.update(names)

    def _others(self, number: int, names: set[str]) -> dict[str, Use]:
        return {
            name: total(
                [
                    self._past.get(name, Use()),
                    *(uses.get(name, Use()) for other, uses in enumerate(self._of) if other != number),
                ]
            )
            for name in sorted(names)
        }
