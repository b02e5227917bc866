"""Checks of what several processes and several machines exchange data through."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from sage_infer.sdk.diagnosis.findings import Check, Finding
from sage_infer.sdk.diagnosis.machine import Machine
from sage_infer.system.mounts import parse_mountinfo

__all__ = ["communication", "interfaces", "local_address", "locked_memory", "rdma_devices", "shared_memory"]

_LEAST_SHARED = 1 << 30
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def communication(library: str) -> tuple[Check, ...]:
    """The checks below of what processes and machines exchange data through, except ``local_address``.

    Args:
        library: prefix of the variables of the library for collective operations, such as ``NCCL``.
    """
    names = interfaces(f"{library}_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
    return names, shared_memory(), rdma_devices(), locked_memory()


def interfaces(*variables: str) -> Check:
    """A check that variables such as ``GLOO_SOCKET_IFNAME`` name interfaces of this machine."""

    def find(machine: Machine) -> Iterator[Finding]:
        known = [path.rpartition("/")[2] for path in machine.paths("/sys/class/net/*")]
        outside = [name for name in known if name != "lo"]
        for variable in variables:
            value = machine.variable(variable)
            if not value or value.startswith("^") or not known:
                continue
            fix = f"export {variable}={outside[0]}" if outside else f"unset {variable}"
            for word in value.removeprefix("=").split(","):
                name = word.strip().partition(":")[0]
                if _is_address(word.strip()):
                    what = f"{variable}={value} is an address; it takes the name of an interface"
                elif not any(other == name or _takes_prefix(variable, value, other, name) for other in known):
                    what = f"{variable}={value}: there is no interface {name}, only {', '.join(known)}"
                elif name == "lo" and outside:
                    what = f"{variable}={value}: other machines cannot be reached through lo"
                else:
                    continue
                yield Finding(what=what, fix=fix, severity="warning" if name == "lo" else "error")
                break

    return Check(
        name="network interfaces",
        sources=(
            "https://github.com/vllm-project/vllm/issues/7074",
            "https://github.com/AMD-AGI/Primus/pull/1063",
            "https://github.com/NVIDIA/nccl/issues/286",
        ),
        find=find,
    )


def _takes_prefix(variable: str, value: str, interface: str, name: str) -> bool:
    """NCCL and HCCL take prefixes of names, unless the value begins with ``=``; Gloo takes whole names."""
    return (
        variable.startswith(("NCCL_", "HCCL_")) and not value.startswith("=") and interface.startswith(name)
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def local_address(variable: str, *, sources: Sequence[str]) -> Check:
    """A check that a variable such as ``HCCL_IF_IP`` is an address of this machine."""

    def find(machine: Machine) -> Iterator[Finding]:
        value = machine.variable(variable)
        if not value:
            return
        # Lines such as "|-- 10.0.0.5", each followed by "/32 host LOCAL" for an address of this machine.
        routes = machine.text("/proc/net/fib_trie")
        own = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", routes)
        others = [address for address in dict.fromkeys(own) if not address.startswith("127.")]
        if not _is_address(value):
            what = f"{variable}={value} is no address"
        elif ":" not in value and own and value not in own:
            here = ", ".join(others) or "local"
            what = f"{variable}={value} is no address of this machine, whose addresses are {here}"
        else:
            return
        yield Finding(what=what, fix=f"export {variable}={others[0]}" if others else f"unset {variable}")

    return Check(name=variable, sources=tuple(sources), find=find)


def shared_memory() -> Check:
    """A check of ``/dev/shm``, which Docker makes 64 MiB large, and processes of one model exchange tensors through."""

    def find(machine: Machine) -> Iterator[Finding]:
        mounts = parse_mountinfo(machine.text("/proc/self/mountinfo"))
        sizes = [
            int(match[1]) * _UNITS[match[2].lower()]
            for mount in mounts
            if mount.point == "/dev/shm"
            for option in mount.super_options
            if (match := re.fullmatch(r"size=(\d+)([kKmMgG]?)", option)) is not None
        ]
        if sizes and sizes[-1] < _LEAST_SHARED:
            yield Finding(
                what=f"/dev/shm has {sizes[-1] >> 20} MiB: a model on several devices fails with a bus error or "
                "'No space left on device'",
                fix="docker run --shm-size=16g …   (or --ipc=host)",
                severity="warning",
            )

    return Check(
        name="shared memory",
        sources=(
            "https://github.com/vllm-project/vllm/issues/789",
            "https://github.com/vllm-project/vllm/issues/1710",
            "https://github.com/vllm-project/production-stack/issues/44",
        ),
        find=find,
    )


def rdma_devices() -> Check:
    """A check that RDMA adapters of the machine were passed on to the container."""

    def find(machine: Machine) -> Iterator[Finding]:
        adapters = [path.rpartition("/")[2] for path in machine.paths("/sys/class/infiniband/*")]
        if adapters and not machine.exists("/dev/infiniband/uverbs*"):
            yield Finding(
                what=f"the machine has RDMA adapters ({', '.join(adapters[:4])}), but /dev/infiniband does not exist: "
                "transfers between machines fall back to TCP without a word",
                fix="docker run --device /dev/infiniband --cap-add IPC_LOCK --ulimit memlock=-1 …",
                severity="warning",
            )

    return Check(
        name="RDMA devices",
        sources=(
            "https://github.com/vllm-project/vllm/pull/42075",
            "https://github.com/NVIDIA/nccl/issues/451",
        ),
        find=find,
    )


def locked_memory() -> Check:
    """A check of the limit of locked memory, which registering memory for RDMA needs."""

    def find(machine: Machine) -> Iterator[Finding]:
        match = re.search(r"^Max locked memory\s+(\d+)", machine.text("/proc/self/limits"), re.MULTILINE)
        if match is None or int(match[1]) >= _LEAST_SHARED or not machine.exists("/dev/infiniband/uverbs*"):
            return
        yield Finding(
            what=f"at most {int(match[1]) >> 10} KiB may be locked: registering memory for RDMA fails with "
            "'Cannot allocate memory'",
            fix="docker run --ulimit memlock=-1 …   (or `ulimit -l unlimited`)",
            severity="warning",
        )

    return Check(
        name="locked memory",
        sources=(
            "https://github.com/kvcache-ai/Mooncake/issues/1382",
            "https://github.com/kvcache-ai/Mooncake/pull/1405",
            "https://github.com/NVIDIA/nccl-tests/issues/206",
        ),
        find=find,
    )
