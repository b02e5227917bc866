"""Ready-made checks of a vendor's stack, on machines that are folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from sage_infer.errors import SchemaError
from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    as_version,
    device_files,
    interfaces,
    local_address,
    locked_memory,
    mounted,
    one_platform,
    rdma_devices,
    releases,
    same_release,
    shared_memory,
    sourced,
    visible_devices,
)

SOURCE = ("https://example.com/1",)
MakeMachine = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    """Makes a machine of files, variables, distributions by version, and platform plug-ins."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(
        *paths: str,
        files: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        versions: Mapping[str, str] | None = None,
        platforms: Mapping[str, str] | None = None,
    ) -> Machine:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for path, text in {**dict.fromkeys(paths, ""), **(files or {})}.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        named = {**(versions or {}), **dict.fromkeys((platforms or {}).values(), "1.0")}
        for name, version in named.items():
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            points = [f"{plugin} = x:y" for plugin, dist in (platforms or {}).items() if dist == name]
            if points:
                (info / "entry_points.txt").write_text("\n".join(["[vllm.platform_plugins]", *points, ""]))
        return Machine(root=str(root), environ=environ or {})

    return make


def said(check: Check, machine: Machine) -> list[str]:
    """What a check says, each with its fix."""
    return [f"{finding.what} -> {finding.fix}" for finding in check.find(machine)]


# --- the machine


def test_a_machine_reads_regular_files_only_and_within_bounds(machine: MakeMachine, tmp_path: Path) -> None:
    here = machine(files={"/a/long": "x" * 100_000, "/a/version": "no\nversion = 1.2.3\n"})
    os.mkfifo(tmp_path / "root/a/pipe")
    assert len(here.text("/a/long")) == 64 * 1024
    assert here.text("/a/pipe") == here.text("/a") == here.text("/a/none") == ""
    assert here.found_in(("/a/none", "/a/v*"), r"^version = (\S+)") == "1.2.3"
    assert here.found_in(("/a/*",), r"^version = \S+") == "version = 1.2.3"
    assert here.found_in(("/a/*",), "nowhere") == ""
    assert here.exists("/b", "/a/l*")
    assert not here.exists("/b*")


def test_paths_are_sorted_by_their_numbers(machine: MakeMachine) -> None:
    here = machine(*(f"/dev/npu{index}" for index in (10, 9, 1)))
    assert here.paths("/dev/npu*") == ["/dev/npu1", "/dev/npu9", "/dev/npu10"]


def test_patterns_begin_with_variables(machine: MakeMachine) -> None:
    here = machine("/opt/kit[1]/version", "/else/version", environ={"KIT": "/opt/kit[1]", "BAD": "else"})
    assert here.paths("$KIT/ver*") == ["/opt/kit[1]/version"]
    assert here.exists("$KIT/version")
    assert not here.exists("$NONE/version", "$BAD/version")


def test_a_machine_knows_distributions_and_their_files(machine: MakeMachine, tmp_path: Path) -> None:
    here = machine(versions={"some-dist": "2.0"}, environ={"A": " 1 "})
    (tmp_path / "site/some_module.py").write_text("x = 1")
    assert here.version("some-dist") == "2.0"
    assert here.version("no-such-dist") == ""
    assert here.installed_text("some-dist", "some_module.py") == "x = 1"
    assert here.installed_text("no-such-dist", "some_module.py") == ""
    assert (here.variable("A"), here.variable("B")) == ("1", "")


def test_this_machine_is_below_the_root_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_INFER_ROOT", "/somewhere/")
    assert Machine.here().root == "/somewhere"
    monkeypatch.delenv("SAGE_INFER_ROOT")
    assert Machine.here().root == ""
    assert Machine.here().exists("/proc/self")


def test_findings_are_one_printable_line_each() -> None:
    assert Finding(what="a\nb\x1b[31m", fix="c").what == "a b [31m"
    with pytest.raises(SchemaError, match="severity"):
        Finding(what="a", fix="b", severity="fatal")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="sources"):
        Check(name="a", sources=(), find=lambda machine: ())
    with pytest.raises(SchemaError, match="https address"):
        Check(name="a", sources=("a user said it",), find=lambda machine: ())


# --- releases


@pytest.mark.parametrize(
    ("text", "version"),
    [("8.3.RC2", "8.3rc2"), ("25.0.rc1.1", "25.0"), ("2.9.0+das.opt1", "2.9.0+das.opt1"), ("latest", None)],
)
def test_versions_of_vendors_are_read(text: str, version: str | None) -> None:
    assert (str(as_version(text)) if as_version(text) else None) == version


def test_releases_are_compared_with_the_row_of_the_anchor(machine: MakeMachine) -> None:
    parts = (
        Part(name="kit", files=("/opt/kit/version",)),
        Part(name="engine", distribution="acme-engine"),
        Part(name="torch-acme", distribution="torch-acme"),
    )
    rows = ({"engine": "==2.*", "kit": ">=8.5", "torch-acme": "==1.9.*"}, {"engine": "==1.*", "kit": ">=7"})
    check = releases(parts, anchor="engine", rows=rows, sources=SOURCE)
    assert said(check, machine(files={"/opt/kit/version": "8.3.RC2\n"})) == []
    here = machine(versions={"acme-engine": "2.1", "torch-acme": "1.8.0"})
    assert said(check, here) == [
        "kit 8.3.RC2 does not go with engine 2.1, which needs >=8.5 -> install kit >=8.5",
        "torch-acme 1.8.0 does not go with engine 2.1, which needs ==1.9.* -> pip install 'torch-acme==1.9.*'",
    ]
    fixed = releases(parts, anchor="engine", rows=rows, sources=SOURCE, fixes={"kit": "get kit {wanted}"})
    assert said(fixed, here)[0].endswith("-> get kit >=8.5")


def test_releases_without_a_row_are_not_judged(machine: MakeMachine) -> None:
    parts = (Part(name="engine", distribution="acme-engine"), Part(name="kit", files=("/kit",)))
    check = releases(parts, anchor="engine", rows=({"engine": "==1.*", "kit": ">=9"},), sources=SOURCE)
    assert said(check, machine(files={"/kit": "8.0.1"}, versions={"acme-engine": "3.0"})) == []


def test_two_distributions_of_one_release(machine: MakeMachine) -> None:
    check = same_release("torch-one", "torch-two", sources=SOURCE)
    assert said(check, machine()) == []
    here = machine(versions={"torch-one": "2.10.0+cpu", "torch-two": "2.9.0.post1"})
    assert said(check, here) == [
        "torch-one 2.10.0+cpu and torch-two 2.9.0.post1 are of different releases; importing torch-two fails"
        " -> pip install 'torch-one==2.9.0'"
    ]


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (None, ["fl (fl-dist) is installed as well -> pip uninstall fl-dist"]),
        ("acme", []),
        ("other", ["VLLM_PLUGINS=other leaves out acme, so vLLM runs on no device or on the CPU"
                   " -> export VLLM_PLUGINS=other,acme"]),
        ("", ["-> export VLLM_PLUGINS=acme"]),
        ("acme, fl", ["fl (fl-dist)"]),
    ],
)  # fmt: skip
def test_one_platform_plug_in(listed: str | None, words: list[str], machine: MakeMachine) -> None:
    environ = {} if listed is None else {"VLLM_PLUGINS": listed}
    here = machine(environ=environ, platforms={"acme": "acme-dist", "fl": "fl-dist"})
    lines = said(one_platform("acme", sources=SOURCE), here)
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


# --- devices


def test_devices_and_their_companions(machine: MakeMachine) -> None:
    check = device_files(
        "/dev/npu[0-9]*", companions=("/dev/npu_ctl", "/dev/npu_mem"), on_bus=lambda machine: 8,
        docker="--device /dev/npu0", sources=SOURCE,
    )  # fmt: skip
    (line,) = said(check, machine())
    assert line.startswith("8 devices are on the PCI bus, but /dev/npu[0-9]* does not exist")
    assert line.endswith("-> docker run --device /dev/npu0 …")
    (line,) = said(check, machine("/dev/npu0", "/dev/npu_ctl"))
    assert line.startswith("/dev/npu0 without /dev/npu_mem")
    assert line.endswith("-> docker run --device /dev/npu_mem …")
    assert said(check, machine("/dev/npu_mem")) == []


def test_what_is_mounted_and_what_was_sourced(machine: MakeMachine) -> None:
    check = mounted(
        "x", files=("/opt/x", "/opt/y"), device="/dev/npu*", what="it fails", fix="do", sources=SOURCE
    )
    assert said(check, machine()) == []
    assert said(check, machine("/dev/npu0")) == ["/opt/x does not exist: it fails -> do"]
    assert said(check, machine("/opt/y")) == []
    script = sourced(
        "env", scripts=("/opt/k*/env.sh",), variables=("KIT", "KIT_HOME"), what="no library", sources=SOURCE
    )
    assert said(script, machine()) == []
    here = machine("/opt/kit/env.sh")
    assert said(script, here) == ["neither $KIT nor $KIT_HOME is set: no library -> source /opt/kit/env.sh"]
    assert said(script, Machine(root=here.root, environ={"KIT_HOME": "/opt/kit"})) == []


@pytest.mark.parametrize(
    ("value", "count", "said_of_it"),
    [
        ("0,1", 2, None),
        ("0,1", 0, None),
        ("GPU-12,GPU-34", 2, None),
        ("", 2, "is empty, which hides every device -> unset NPUS"),
        ("-1", 2, "NPUS=-1 hides every device -> unset NPUS"),
        (
            "2",
            2,
            "NPUS=2: 2 not here: the 2 devices are numbered 0 to 1, also in a container -> export NPUS=0",
        ),
        ("1", 1, "1 not here: the only device is 0, also in a container -> export NPUS=0"),
        ("1,1", 2, "a device is named twice -> export NPUS=1"),
        ("0 1", 2, "'0 1' is no number; expected numbers separated by commas -> export NPUS=0"),
        ("-1,0", 2, "'-1' is no number; expected numbers separated by commas -> export NPUS=0"),
    ],
)
def test_selected_devices(value: str, count: int, said_of_it: str | None, machine: MakeMachine) -> None:
    here = machine(*(f"/dev/npu{index}" for index in range(count)), environ={"NPUS": value})
    lines = said(visible_devices("NPUS", "/dev/npu[0-9]*", sources=SOURCE), here)
    assert len(lines) == (said_of_it is not None)
    assert all(line.endswith(said_of_it or "") for line in lines)


def test_selected_devices_of_one_group(machine: MakeMachine) -> None:
    groups = (frozenset({0, 1}), frozenset({2, 3}))
    check = visible_devices("NPUS", "/dev/npu[0-9]*", sources=SOURCE, groups=groups, others=("GPUS",))
    here = machine(*(f"/dev/npu{index}" for index in range(4)))
    for value, expected in (("2,3", 0), ("1,2", 1), ("0,1,2", 0)):
        assert len(said(check, Machine(root=here.root, environ={"NPUS": value}))) == expected
    assert said(check, Machine(root=here.root, environ={"NPUS": "0", "GPUS": "0"})) == []
    twins = Machine(root=here.root, environ={"NPUS": "0", "GPUS": "1"})
    assert said(check, twins) == ["NPUS=0 and GPUS=1 select different devices -> unset GPUS"]
    assert said(check, Machine(root=here.root, environ={"GPUS": "7"})) == []


# --- the network, and what processes share


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", None),
        ("GLOO_SOCKET_IFNAME", "eth", "there is no interface eth, only eth0, lo"),
        ("GLOO_SOCKET_IFNAME", "10.1.2.3", "is an address; it takes the name of an interface"),
        ("GLOO_SOCKET_IFNAME", "fe80::1", "is an address"),
        ("GLOO_SOCKET_IFNAME", "lo", "other machines cannot be reached through lo"),
        ("NCCL_SOCKET_IFNAME", "eth", None),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", None),
        ("NCCL_SOCKET_IFNAME", "=eth", "there is no interface eth"),
        ("NCCL_SOCKET_IFNAME", "eth0,ib0", "there is no interface ib0"),
    ],
)
def test_interfaces(variable: str, value: str, word: str | None, machine: MakeMachine) -> None:
    here = machine("/sys/class/net/eth0/mtu", "/sys/class/net/lo/mtu", environ={variable: value})
    lines = said(interfaces(variable), here)
    assert len(lines) == (word is not None)
    assert all(word is not None and word in line for line in lines)
    assert all(line.endswith(f"-> export {variable}=eth0") for line in lines)


def test_interfaces_without_any_are_not_judged(machine: MakeMachine) -> None:
    check = interfaces("GLOO_SOCKET_IFNAME")
    assert said(check, machine(environ={"GLOO_SOCKET_IFNAME": "eth7"})) == []
    alone = machine("/sys/class/net/lo/mtu", environ={"GLOO_SOCKET_IFNAME": "eth7"})
    assert said(check, alone)[0].endswith("-> unset GLOO_SOCKET_IFNAME")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("10.0.0.5", None),
        ("127.0.0.1", None),
        ("fe80::1", None),
        ("10.0.0.6", "no address of this machine, whose addresses are 10.0.0.5 -> export IP=10.0.0.5"),
        ("eth0", "IP=eth0 is no address -> export IP=10.0.0.5"),
        ("", None),
    ],
)
def test_an_address_of_this_machine(value: str, word: str | None, machine: MakeMachine) -> None:
    routes = "Main:\n   |-- 10.0.0.0\n      /24 link UNICAST\n   |-- 10.0.0.5\n      /32 host LOCAL\n"
    routes += "Local:\n   |-- 127.0.0.1\n      /32 host LOCAL\n"
    here = machine(files={"/proc/net/fib_trie": routes}, environ={"IP": value})
    lines = said(local_address("IP", sources=SOURCE), here)
    assert len(lines) == (word is not None)
    assert all(line.endswith(word or "") for line in lines)


def test_an_address_is_not_judged_without_routes(machine: MakeMachine) -> None:
    check = local_address("IP", sources=SOURCE)
    assert said(check, machine(environ={"IP": "10.0.0.6"})) == []
    assert said(check, machine(environ={"IP": "x"})) == ["IP=x is no address -> unset IP"]


@pytest.mark.parametrize(
    ("option", "is_small"), [("size=65536k", True), ("size=2g", False), ("inode64", False)]
)
def test_shared_memory(option: str, is_small: bool, machine: MakeMachine) -> None:
    line = f"29 22 0:26 / /dev/shm rw,nosuid - tmpfs shm rw,{option}\n"
    lines = said(shared_memory(), machine(files={"/proc/self/mountinfo": line}))
    assert [text.partition(":")[0] for text in lines] == (["/dev/shm has 64 MiB"] if is_small else [])


def test_rdma(machine: MakeMachine) -> None:
    assert said(rdma_devices(), machine()) == []
    here = machine("/sys/class/infiniband/mlx5_0/ports", "/sys/class/infiniband/mlx5_1/ports")
    (line,) = said(rdma_devices(), here)
    assert "(mlx5_0, mlx5_1)" in line
    limits = "Max locked memory         8388608              8388608              bytes\n"
    assert said(locked_memory(), machine(files={"/proc/self/limits": limits})) == []
    here = machine("/dev/infiniband/uverbs0")
    (line,) = said(locked_memory(), here)
    assert line.startswith("at most 8192 KiB may be locked")
    assert said(rdma_devices(), here) == []
