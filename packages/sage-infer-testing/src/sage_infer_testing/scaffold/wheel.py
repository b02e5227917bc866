"""Names and files of a new wheel, checked before anything is written."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from attrs import frozen
from sage_infer.discovery import KindName
from sage_infer.errors import InvalidRequest
from sage_infer.version import CONTRACT_VERSION

__all__ = ["KINDS", "NewWheel", "plan_wheel", "write_wheel"]

Kind = Literal["backend", "embedding", "detector", "kvstore", "transport", "executor"]

KINDS: Mapping[Kind, tuple[KindName, str, str]] = {
    "backend": ("backend", "sage_infer_backends() -> list[specs.BackendSpec]", "text generation"),
    "embedding": ("backend", "sage_infer_backends() -> list[specs.BackendSpec]", "embeddings"),
    "detector": ("detector", "sage_infer_detectors() -> list[specs.DetectorSpec]", "hardware detection"),
    "kvstore": ("store", "sage_infer_kv_stores() -> list[specs.KVStoreSpec]", "a KV store"),
    "transport": ("transport", "sage_infer_transports() -> list[specs.TransportSpec]", "a transport of KV"),
    "executor": ("executor", "sage_infer_executors() -> list[specs.ExecutorSpec]", "an executor of replicas"),
}
"""Kind of ``sage infer plugin list``, hook and description of each kind that a wheel can be made for."""

_VENDOR_KINDS: tuple[Kind, ...] = ("backend", "embedding", "detector")
_PREFIX = "sage-infer-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
_TEMPLATES = Path(__file__).with_name("templates")


class _Template(string.Template):
    """``%name``, because shells, console blocks and GitHub's workflows use the dollar."""

    delimiter = "%"


@frozen(kw_only=True)
class NewWheel:
    """A wheel to be written.

    Attributes:
        name: name of its items.
        kinds: what it contains, in the order of ``KINDS``.
        is_vendor: whether it is a hardware vendor's, with needs and checks of the vendor's stack.
        folder: folder to be made.
    """

    name: str
    kinds: tuple[Kind, ...]
    is_vendor: bool
    folder: Path

    @property
    def distribution(self) -> str:
        return f"{_PREFIX}{self.name}"

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def items(self) -> dict[Kind, str]:
        """Name of the item of each kind. An embedding backend beside a text backend has a name of its own."""
        names = dict.fromkeys(self.kinds, self.name)
        if "backend" in names and "embedding" in names:
            names["embedding"] = f"{self.name}-embedding"
        return names

    def files(self) -> dict[str, str]:
        """Text of each file by its path in the folder."""
        values = self._values()
        groups = ["wheel", *self.kinds, *(["vendor"] if self.is_vendor else [])]
        values["files"] = "".join(_filled(_TEMPLATES / group / "files.tmpl", values) for group in groups[1:])
        found = {}
        for group in groups:
            for template in sorted((_TEMPLATES / group).rglob("*.tmpl")):
                path = template.relative_to(_TEMPLATES / group).as_posix().removesuffix(".tmpl")
                if path not in ("files", "spec"):
                    path = path.replace("PACKAGE", self.package).replace("dot-", ".")
                    found[path] = _filled(template, values)
        found[f"src/{self.package}/plugin.py"] = self._plugin(values)
        return dict(sorted(found.items()))

    def _values(self) -> dict[str, str]:
        core = importlib.metadata.metadata("sage-infer-core")
        least = core["Requires-Python"].removeprefix(">=")
        major = CONTRACT_VERSION.partition(".")[0]
        requirements = [f"sage-infer-core>={core['Version']},<{_next_major(core['Version'])}"]
        if "detector" in self.kinds:
            hal = (
                importlib.metadata.version("sage-infer-hal")
                if _is_installed("sage-infer-hal")
                else core["Version"]
            )
            requirements.append(f"sage-infer-hal>={hal},<{_next_major(hal)}")
        items = self.items
        hardware = self.name if self.is_vendor else "cpu"
        return {
            "name": self.name, "distribution": self.distribution, "package": self.package,
            "cls": "".join(word.capitalize() for word in self.name.split("-")),
            "title": " ".join(word.capitalize() for word in self.name.split("-")),
            "upper": self.name.upper().replace("-", "_"),
            "backend": items.get("backend", ""), "embedding": items.get("embedding", ""),
            "hardware": hardware, "device_hardware": self.name,
            "vendor_fields": "\n            needs=NEEDS,\n            device_nodes=NODES," if self.is_vendor else "",
            "check_fields": f'\n            checks="{self.package}.checks:CHECKS",' if self.is_vendor else "",
            "what": ", ".join(KINDS[kind][2] for kind in self.kinds),
            "contract_major": major, "requires_python": core["Requires-Python"],
            "dependencies": ", ".join(f'"{requirement}"' for requirement in requirements),
            "testing_version": importlib.metadata.version("sage-infer-testing"),
            "pytest_options": '\npythonpath = ["tests/stand_in"]' if "executor" in self.kinds else "",
            "pythons": ", ".join(f'"{python}"' for python in _PYTHONS if _number(python) >= _number(least)),
        }  # fmt: skip

    def _plugin(self, values: Mapping[str, str]) -> str:
        """The plug-in module: a hook for each kind of item."""
        lines = [
            '"""What this wheel plugs in. Imports nothing but the specs."""',
            "",
            "from sage_infer import hookimpl, specs",
        ]
        if self.is_vendor:
            lines += ["", f"from {self.package}.needs import NEEDS, NODES"]
        lines += ["", f'SAGE_INFER_CONTRACT = "{CONTRACT_VERSION}"']
        if "detector" in self.kinds and not self.is_vendor:
            lines += [
                f'NODES = ("/dev/{self.name}[0-9]*",)  # device files that exist if the hardware is present'
            ]
        hooks: dict[str, list[str]] = {}
        for kind in self.kinds:
            hooks.setdefault(KINDS[kind][1], []).append(
                _filled(_TEMPLATES / kind / "spec.tmpl", values).rstrip()
            )
        for hook, items in hooks.items():
            lines += ["", "", "@hookimpl", f"def {hook}:", "    return [", *items, "    ]"]
        return "\n".join(lines) + "\n"


def plan_wheel(name: str, kinds: Sequence[str], *, is_vendor: bool = False, into: Path = Path()) -> NewWheel:
    """Check the names and the place of a new wheel; nothing is written.

    Raises:
        InvalidRequest: the name is invalid or taken by an installed plug-in, a kind is unknown, or the folder exists.
    """
    name = name.removeprefix(_PREFIX)
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise InvalidRequest(
            f"the name must be up to {_LONGEST} lower-case letters and digits, with single hyphens between words and a "
            f"letter first, such as acme or acme-npu; got {name!r}"
        )
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidRequest(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}{hint}")
    wanted: set[str] = set(kinds) or set(_VENDOR_KINDS if is_vendor else ())
    if not wanted:
        raise InvalidRequest(
            f"--kind is missing; name one of {', '.join(KINDS)}, or --vendor for a hardware vendor"
        )
    if is_vendor:
        wanted.add("detector")
    chosen = tuple(kind for kind in get_args(Kind) if kind in wanted)
    wheel = NewWheel(name=name, kinds=chosen, is_vendor=is_vendor, folder=into / f"{_PREFIX}{name}")
    for problem in _taken(wheel):
        raise InvalidRequest(f"{problem}; choose another name")
    if not into.is_dir():
        raise InvalidRequest(f"--into {into} is not a folder; create it first")
    if os.path.lexists(wheel.folder):
        raise InvalidRequest(
            f"{wheel.folder} exists already; choose another name, or another folder with --into"
        )
    return wheel


def write_wheel(wheel: NewWheel) -> list[str]:
    """Write the wheel's folder, whole or not at all, and return the paths of its files.

    Raises:
        InvalidRequest: the folder cannot be written.
    """
    files, aside = wheel.files(), None
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{wheel.distribution}-", dir=wheel.folder.parent))
        made = aside / wheel.distribution  # with the usual permissions, unlike the folder around it
        for path, text in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text, "utf-8")
        if os.path.lexists(wheel.folder):  # meanwhile
            raise InvalidRequest(f"{wheel.folder} exists already; nothing was written")
        os.rename(made, wheel.folder)
    except OSError as error:
        raise InvalidRequest(f"cannot write {wheel.folder}: {error.strerror or error}") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    return list(files)


def _taken(wheel: NewWheel) -> Iterator[str]:
    """What is installed under a name of the wheel."""
    from sage_infer.plugins import list_plugins

    for kind, item in wheel.items.items():
        installed = KINDS[kind][0]
        for row in list_plugins(installed):
            if row.name == item and row.kind == installed:
                yield f"{row.plugin.distribution} has a {installed} {item!r} already"
    if _is_installed(wheel.distribution):
        yield f"there is a wheel {wheel.distribution!r} already"
    if importlib.util.find_spec(wheel.package) is not None:
        yield f"there is a package {wheel.package!r} already"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _filled(template: Path, values: Mapping[str, str]) -> str:
    return _Template(template.read_text("utf-8")).substitute(values)


def _next_major(version: str) -> int:
    return int(version.partition(".")[0]) + 1


def _number(python: str) -> tuple[int, ...]:
    return tuple(int(part) for part in python.split(".")[:2])
