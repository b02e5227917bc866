"""Backends on another wheel's engine: listed with and without that wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.sdk.platform_backends import PlatformBackends
from sage_infer.specs import BackendSpec, Need

ENGINE = """
from sage_infer import BackendSpec

def sage_infer_backends():
    return [BackendSpec(name="tide", factory="tide.engine:Tide", serves={"llm"}, options={"dtype": "the dtype"},
                        prepare="tide.files:prepare", memory="tide.files:memory", hardware={"cpu"}, summary="Tide")]
"""
NEEDS = (Need(what="driver", files=("/nowhere/driver",), install="install the driver"),)


def spec_on(engine: str, of: str = "tide") -> BackendSpec:
    platform = PlatformBackends(
        engine_plugin=engine,
        requires={"tide": ">=1"},
        install="pip install 'acme[tide]'",
        hardware="acme",
        needs=NEEDS,
        device_nodes=("/dev/acme*",),
        limits=("Not run on the hardware.",),
    )
    return platform.spec(of, name="acme", factory="acme:Acme", serves={"llm"}, summary="Tide on Acme")


def test_without_the_engines_wheel_it_is_listed_with_what_it_requires() -> None:
    spec = spec_on("tide_that_is_not_installed.plugin")
    assert (spec.name, spec.factory, spec.hardware) == ("acme", "acme:Acme", {"acme"})
    assert (spec.requires, spec.needs, spec.device_nodes) == ({"tide": ">=1"}, NEEDS, ("/dev/acme*",))
    assert (spec.options, spec.prepare, spec.memory) == ({}, None, None)


def test_options_and_files_are_the_engines_and_the_rest_is_the_vendors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tide_with_options.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    spec = spec_on("tide_with_options")
    assert (spec.options, spec.prepare, spec.memory) == (
        {"dtype": "the dtype"},
        "tide.files:prepare",
        "tide.files:memory",
    )
    assert (spec.name, spec.hardware, spec.summary) == ("acme", {"acme"}, "Tide on Acme")
    assert (spec.install, spec.limits) == ("pip install 'acme[tide]'", ("Not run on the hardware.",))


def test_a_backend_that_the_engine_does_not_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tide_too_old.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        LookupError, match=r"'acme' is built on 'wave' of tide_too_old, which has tide; install"
    ):
        spec_on("tide_too_old", of="wave")
