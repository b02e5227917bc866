"""Facts of the installed vLLM, from metadata only."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sage_infer.errors import BackendUnavailable
from sage_infer_vllm.installed import check_installed, installed_engine, missing, platform_plugins
from sage_infer_vllm.platform import Platform
from vllm_toys import write_distribution

Install = Callable[..., None]
VENDOR = Platform(
    backend_name="vendor",
    engine={"toy-vllm": ">=0.18,<0.19"},
    plugin="toy",
    plugin_distributions={"toy-vllm-plugin": ">=1"},
    hardware_backend="vendor",
)
PLUGIN = "[vllm.platform_plugins]\ntoy = toy_plugin_that_must_not_be_imported:register\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution's metadata, and nothing else, on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, version: str, entry_points: str = "") -> None:
        write_distribution(tmp_path, name, version, entry_points)
        importlib.invalidate_caches()

    return add


def test_without_vllm_the_install_command_is_shown() -> None:
    assert missing(VENDOR) == [
        "vLLM is not installed; pip install 'toy-vllm>=0.18,<0.19'",
        "toy-vllm-plugin>=1 is not installed; pip install 'toy-vllm-plugin>=1'",
    ]
    assert installed_engine(VENDOR) is None
    with pytest.raises(
        BackendUnavailable, match=r"'vendor' cannot start: vLLM is not installed; pip install"
    ):
        check_installed(VENDOR)


def test_everything_there(install: Install) -> None:
    install("toy-vllm", "0.18.1+das")  # a vendor's local version counts as the release it is of
    install("toy-vllm-plugin", "1.2", PLUGIN)
    assert missing(VENDOR) == []
    assert installed_engine(VENDOR) == ("toy-vllm", "0.18.1+das")
    assert platform_plugins()["toy"] == "toy-vllm-plugin"
    assert "toy_plugin_that_must_not_be_imported" not in sys.modules
    check_installed(VENDOR)


def test_other_versions_are_named(install: Install) -> None:
    install("toy-vllm", "0.20.0")
    install("toy-vllm-plugin", "0.9", PLUGIN)
    first, second = missing(VENDOR)
    assert first.startswith("toy-vllm 0.20.0 is installed, expected toy-vllm>=0.18,<0.19")
    assert second.startswith("toy-vllm-plugin 0.9 is installed, expected toy-vllm-plugin>=1")


def test_a_plugin_distribution_without_its_entry_point(install: Install) -> None:
    install("toy-vllm", "0.18.0")
    install("toy-vllm-plugin", "1.0")
    assert missing(VENDOR) == ["no distribution provides the vLLM platform plug-in 'toy'; install it"]


def test_another_vendors_plugin_is_in_the_way(install: Install) -> None:
    install("toy-vllm", "0.18.0")
    install("toy-vllm-plugin", "1.0", PLUGIN)
    install("other-plugin", "3.0", "[vllm.platform_plugins]\nother = other:register\n")
    (line,) = missing(VENDOR)
    assert line.endswith("a process can use only one: other (other-plugin)")


def test_two_builds_of_vllm_overwrite_each_other(install: Install) -> None:
    both = Platform(backend_name="x", engine={"toy-a": "", "toy-b": ""})
    install("toy-a", "1.0")
    install("toy-b", "1.0")
    (line,) = missing(both)
    assert line.startswith("toy-a and toy-b are both installed and overwrite each other; pip uninstall")
