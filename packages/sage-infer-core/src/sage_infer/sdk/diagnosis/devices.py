"""Checks of devices: whether a container has them, and how they are numbered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from sage_infer.sdk.diagnosis.findings import Check, Finding
from sage_infer.sdk.diagnosis.machine import Machine

__all__ = ["device_files", "mounted", "sourced", "visible_devices"]


def device_files(
    device: str,
    *,
    companions: Sequence[str],
    on_bus: Callable[[Machine], int],
    docker: str,
    sources: Collection[str],
) -> Check:
    """A check that the files of the devices were passed on to a container.

    Args:
        device: glob pattern of the devices.
        companions: files that the driver has beside them, all of which are required.
        on_bus: number of the vendor's accelerators on the PCI bus, which a container sees, too.
        docker: options of ``docker run`` that pass everything on.
        sources: as in ``Check``.
    """

    def find(machine: Machine) -> Iterator[Finding]:
        devices = machine.paths(device)
        missing = [path for path in companions if not machine.exists(path)]
        count = on_bus(machine)
        if devices and missing:
            here = devices[0] if len(devices) == 1 else f"{devices[0]} to {devices[-1]}"
            yield Finding(
                what=f"{here} without {', '.join(missing)}: the container has only some of the driver's files",
                fix=f"docker run {' '.join(f'--device {path}' for path in missing)} …",
            )
        elif count and not devices:
            yield Finding(
                what=f"{count} devices are on the PCI bus, but {device} does not exist: they were not "
                "passed on to this container, or the driver is not loaded",
                fix=f"docker run {docker} …",
            )

    return Check(name="device files", sources=tuple(sources), find=find)


def mounted(
    name: str, *, files: Sequence[str], device: str, what: str, fix: str, sources: Collection[str]
) -> Check:
    """A check that one of some files exists wherever the devices do; ``what`` says what fails without it."""

    def find(machine: Machine) -> Iterator[Finding]:
        if machine.exists(device) and not machine.exists(*files):
            yield Finding(what=f"{files[0]} does not exist: {what}", fix=fix)

    return Check(name=name, sources=tuple(sources), find=find)


def sourced(
    name: str,
    *,
    scripts: Sequence[str],
    variables: Sequence[str],
    what: str,
    sources: Collection[str],
    command: str = "source {found}",
) -> Check:
    """A check that a toolkit's script was sourced in this shell.

    Args:
        name: name of the check.
        scripts: glob patterns of the script; if none exists, the toolkit is not installed, which ``Need`` reports.
        variables: variables that it sets; any one is enough.
        what: what fails without it.
        sources: as in ``Check``.
        command: the fix; ``{found}`` stands for the script.
    """

    def find(machine: Machine) -> Iterator[Finding]:
        found = next((path for pattern in scripts for path in machine.paths(pattern)), "")
        if found and not any(machine.variable(variable) for variable in variables):
            names = " nor ".join(f"${variable}" for variable in variables)
            unset = f"neither {names} is set" if len(variables) > 1 else f"{names} is not set"
            yield Finding(what=f"{unset}: {what}", fix=command.format(found=found))

    return Check(name=name, sources=tuple(sources), find=find)


def visible_devices(
    variable: str,
    device: str,
    *,
    sources: Collection[str],
    groups: Sequence[frozenset[int]] = (),
    others: Sequence[str] = (),
) -> Check:
    """A check of the variable that selects devices.

    Args:
        variable: its name.
        device: glob pattern of the devices, for their number.
        sources: as in ``Check``.
        groups: sets of devices that can work together, for selections of the same size.
        others: variables of the same meaning, which must not contradict it.
    """

    def find(machine: Machine) -> Iterator[Finding]:
        value = machine.environ.get(variable)
        if value is not None:
            yield from _selection(machine, value.strip())
        for other in others:
            twin = machine.environ.get(other)
            if value is not None and twin is not None and twin.strip() != value.strip():
                yield Finding(
                    what=f"{variable}={value} and {other}={twin} select different devices",
                    fix=f"unset {other}",
                    severity="warning",
                )

    def _selection(machine: Machine, value: str) -> Iterator[Finding]:
        if value in ("", "-1"):
            shown = f"{variable}={value}" if value else f"{variable} is empty, which"
            yield Finding(what=f"{shown} hides every device", fix=f"unset {variable}")
            return
        words = [word.strip() for word in value.split(",")]
        count = len(machine.paths(device))
        if not count or any(word[:1].isalpha() for word in words):  # nothing to compare with, or UUIDs
            return
        wrong = _wrong(words, count)
        if wrong:
            fit = [word for word in dict.fromkeys(words) if word.isdecimal() and int(word) < count]
            best = fit or map(str, range(min(len(words), count)))
            yield Finding(what=f"{variable}={value}: {wrong}", fix=f"export {variable}={','.join(best)}")
        elif groups and len(words) == len(groups[0]) and {int(word) for word in words} not in groups:
            lists = [",".join(map(str, sorted(group))) for group in groups]
            yield Finding(
                what=f"{variable}={value}: devices of different groups are not linked; use {' or '.join(lists)}",
                fix=f"export {variable}={lists[0]}",
                severity="warning",
            )

    return Check(name=variable, sources=tuple(sources), find=find)


def _wrong(words: Sequence[str], count: int) -> str:
    """What is wrong with the numbers of ``count`` devices; empty if nothing is."""
    bad = [word for word in words if not word.isdecimal()]
    if bad:
        return f"{bad[0]!r} is no number; expected numbers separated by commas"
    if len(set(words)) < len(words):
        return "a device is named twice"
    over = [word for word in words if int(word) >= count]
    numbers = f"{count} devices are numbered 0 to {count - 1}" if count > 1 else "only device is 0"
    return f"{', '.join(over)} not here: the {numbers}, also in a container" if over else ""
