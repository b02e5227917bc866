"""Faults that a simulation injects: crashes and stalls of instances."""

from __future__ import annotations

from attrs import frozen
from sage_infer.errors import InvalidRequest

__all__ = ["Fault", "parse_crash", "parse_stall"]


@frozen
class Fault:
    """An instance that crashes or stalls.

    Attributes:
        slot: the instance.
        at: when it happens, in seconds of simulated time.
        seconds: duration of a stall, or time from a crash until the restarted instance is ready.
        is_crash: whether its requests and memory are lost.
    """

    slot: int
    at: float
    seconds: float
    is_crash: bool


def parse_crash(text: str, instances: int) -> Fault:
    """Parse ``SLOT@TIME`` or ``SLOT@TIME:RESTART``, where a restart takes 30 s by default.

    Raises:
        InvalidRequest: it is malformed, or there is no such instance.
    """
    return _parse("--crash", text, instances, 30.0, is_crash=True)


def parse_stall(text: str, instances: int) -> Fault:
    """Parse ``SLOT@TIME:SECONDS``.

    Raises:
        InvalidRequest: it is malformed, or there is no such instance.
    """
    return _parse("--stall", text, instances, None, is_crash=False)


def _parse(option: str, text: str, instances: int, default: float | None, *, is_crash: bool) -> Fault:
    slot, _, rest = text.partition("@")
    at, colon, seconds = rest.partition(":")
    try:
        lasts = float(seconds) if colon or default is None else default
        fault = Fault(int(slot), float(at), lasts, is_crash)
        if not 0 <= fault.at < 1e9 or not 0 < fault.seconds < 1e9:
            raise ValueError
    except ValueError:
        form = "SLOT@TIME[:RESTART]" if is_crash else "SLOT@TIME:SECONDS"
        raise InvalidRequest(f"{option} must be {form} in seconds, such as 3@120:5; got {text!r}") from None
    if not 0 <= fault.slot < instances:
        raise InvalidRequest(
            f"{option} {text}: there is no instance {fault.slot}; instances are 0 to {instances - 1}"
        )
    return fault
