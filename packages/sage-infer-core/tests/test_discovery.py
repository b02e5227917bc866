"""Discovery: what plug-ins say is listed, what is wrong with one stays with it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sage_infer import Need, hookspecs
from sage_infer.discovery import BackendInfo, backend_info, model_specs
from sage_infer.discovery.distributions import describe_distribution, with_required
from sage_infer.discovery.readiness import ROOT_VARIABLE, missing_requirements, unmet_needs

if TYPE_CHECKING:
    from conftest import Site

HEAD = "from sage_infer import BackendSpec, DetectorSpec, ModelSpec, hookimpl\n"
BACKEND = "BackendSpec(name={name!r}, factory='engine:Backend', serves={{'llm'}}{more})"


def backends(*names: str, more: str = "") -> str:
    specs = ", ".join(BACKEND.format(name=name, more=more) for name in names)
    return f"{HEAD}@hookimpl\ndef sage_infer_backends():\n    return [{specs}]\n"


def rows(site: Site, **options: list[str]) -> dict[str, BackendInfo]:
    return {row.name: row for row in backend_info(site.registry(**options))}


def test_a_good_plugin_is_ready(site: Site) -> None:
    site.add("good", backends("alpha", "beta"))
    found = rows(site)
    assert [(row.name, row.state, row.reason) for row in found.values()] == [
        ("alpha", "ready", ""),
        ("beta", "ready", ""),
    ]
    assert found["alpha"].plugin.distribution == "good-dist"


BROKEN = {
    "raises at import": ("raise RuntimeError('no\\nlicence')", "RuntimeError: no"),
    "syntax error": ("def", "SyntaxError: invalid syntax"),
    "no such module": ("", "No module named 'bad_module'"),
    "hook raises": (
        HEAD + "@hookimpl\ndef sage_infer_backends():\n    return 1 / 0\n",
        "ZeroDivisionError: division by zero",
    ),
    "hook returns a spec": (
        HEAD
        + "@hookimpl\ndef sage_infer_backends():\n    return BackendSpec(name='x', factory='a:b', serves={'llm'})\n",
        "must return a list of BackendSpec, got BackendSpec",
    ),
    "hook returns strings": (
        HEAD + "@hookimpl\ndef sage_infer_backends():\n    return ['x']\n",
        "got a list with str",
    ),
    "wrong field": (backends("Bad Name"), "$.name: must be a lower-case name"),
    "unknown hook": (
        HEAD + "@hookimpl\ndef sage_infer_backend():\n    return []\n",
        "unknown hook; did you mean sage_infer_backends?",
    ),
    "marked function of another name": (
        HEAD + "@hookimpl\ndef provide():\n    return []\n",
        "bad_module.provide() implements an unknown hook; known: sage_infer_backends, ",
    ),
    "forgotten mark": (
        HEAD + "def sage_infer_backends():\n    return []\n",
        "bad_module.sage_infer_backends() lacks @sage_infer.hookimpl, so it is never called",
    ),
    "forgotten mark and typo": (
        HEAD + "def sage_infer_backend():\n    return []\n",
        "is not a hook; did you mean sage_infer_backends, marked with @sage_infer.hookimpl?",
    ),
    "no hook": ("x = 1", "bad_module implements no hook"),
    "exits at import": ("import sys\nsys.exit(3)", "import of bad_module failed: SystemExit: 3"),
    "panics at import": (
        "class PanicException(BaseException): pass\nraise PanicException('native')",
        "bad_module.PanicException: native",
    ),
    "exits in a hook": (
        HEAD + "@hookimpl\ndef sage_infer_backends():\n    raise SystemExit('bye')\n",
        "bad_module.sage_infer_backends() failed: SystemExit: bye",
    ),
    "wrong arguments": (HEAD + "@hookimpl\ndef sage_infer_backends(config):\n    return []\n", "config"),
    "odd version": ("SAGE_INFER_CONTRACT = 1", "must be MAJOR.MINOR"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason_and_others_work(site: Site, case: str) -> None:
    source, reason = BROKEN[case]
    site.add("bad", source)
    site.add("good", backends("alpha"))
    found = rows(site)
    assert found["bad"].state == "broken"
    assert reason in found["bad"].reason
    assert found["alpha"].state == "ready"


def test_a_traceback_is_kept_for_those_who_ask(site: Site) -> None:
    site.add("bad", "def f():\n    raise KeyError('deep')\nf()")
    assert "in f" in rows(site)["bad"].detail


@pytest.mark.parametrize(
    ("version", "fix"), [("2.0", "sage-infer-core"), ("1.99", "sage-infer-core"), ("0.9", "old-dist")]
)
def test_another_contract_version_is_incompatible(site: Site, version: str, fix: str) -> None:
    site.add("old", f"SAGE_INFER_CONTRACT = {version!r}\n" + backends("alpha"))
    site.add("good", backends("beta"))
    found = rows(site)
    assert found["old"].state == "incompatible"
    assert found["old"].reason == f"written for contract {version}, but this sage-infer-core supports 1.0"
    assert found["old"].fix == f"pip install --upgrade {fix}"
    assert "alpha" not in found
    assert found["beta"].state == "ready"


def test_two_with_one_name_are_both_refused_and_both_named(site: Site) -> None:
    site.add("one", backends("alpha", "mine"))
    site.add("two", backends("alpha"))
    all_rows = backend_info(site.registry())
    clashing = [row for row in all_rows if row.name == "alpha"]
    assert [row.state for row in clashing] == ["broken", "broken"]
    for row in clashing:
        assert "one-dist (one_module)" in row.reason
        assert "two-dist (two_module)" in row.reason
        assert "SAGE_INFER_DISABLE=" in row.fix
    assert next(row for row in all_rows if row.name == "mine").state == "ready"


def test_switching_one_of_them_off_settles_it(site: Site) -> None:
    site.add("one", backends("alpha"))
    site.add("two", backends("alpha"))
    for name in ("two", "two-dist"):
        found = rows(site, disabled=[name])
        assert found["alpha"].state == "ready"
        assert found["alpha"].plugin.name == "one"


def test_one_name_twice_in_one_plugin(site: Site) -> None:
    site.add("one", backends("alpha", "alpha"))
    assert rows(site)["alpha"].reason == "name 'alpha' is returned 2 times by one-dist (one_module)"


def test_a_backend_can_be_switched_off_by_name_and_a_plugin_is_then_not_imported(site: Site) -> None:
    site.add("one", backends("alpha", "beta"))
    site.add("bad", "raise SystemError")
    registry = site.registry(disabled=["alpha", "bad"])
    assert [row.name for row in backend_info(registry)] == ["beta"]
    assert [plugin.name for plugin in registry.plugins if plugin.disabled] == ["bad"]


def test_entry_points_of_two_distributions_may_share_a_name_and_a_module(site: Site) -> None:
    site.add("same", backends("alpha"), dist="first", module="shared")
    site.add("same", "", dist="second", module="shared")
    assert [(row.name, row.state) for row in backend_info(site.registry())] == [("alpha", "ready")]


def test_an_entry_point_must_name_a_module(site: Site) -> None:
    site.add("odd", "thing = 5", module="odd_module:thing")
    (site.folder / "odd_module.py").write_text("thing = 5")
    assert "must name a module, but odd_module:thing is a int" in rows(site)["odd"].reason


def test_a_missing_requirement_names_what_was_found_and_the_command(site: Site) -> None:
    more = ", requires={'no-such-dist': '>=2', 'attrs': '>=999', 'pluggy': ''}"
    site.add("needy", backends("alpha", more=more))
    row = rows(site)["alpha"]
    assert row.state == "missing-requirement"
    assert row.reason.startswith("needs no-such-dist>=2 (not installed), attrs>=999 (")
    assert row.fix == "pip install 'no-such-dist>=2' 'attrs>=999'"


def test_a_plugin_may_name_its_own_install_command(site: Site) -> None:
    more = ", requires={'no-such-dist': ''}, install='pip install no-such-dist --index-url there'"
    site.add("needy", backends("alpha", more=more))
    assert rows(site)["alpha"].fix == "pip install no-such-dist --index-url there"


def test_alternatives_are_met_by_any_one_of_them(site: Site) -> None:
    assert missing_requirements({"no-such-dist | attrs": ">=1"}) == []
    assert missing_requirements({"no-such-dist | attrs": ">=999"})[0][1].endswith(" is installed")
    site.add("needy", backends("alpha", more=", requires={'no-such-a | no-such-b': '>=2'}"))
    row = rows(site)["alpha"]
    assert row.reason == "needs no-such-a>=2 | no-such-b>=2 (not installed)"
    assert row.fix == "pip install 'no-such-a>=2'"


@pytest.mark.parametrize(("nodes", "command"), [([], "install for cpu"), (["npu0"], "install for npu")])
def test_the_install_command_is_that_of_the_hardware_that_is_here(
    site: Site, tmp_path: Path, nodes: list[str], command: str
) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    more = (
        ", requires={'no-such-dist': ''}, hardware={'npu', 'cpu'}, device_nodes=['"
        + str(tmp_path)
        + "/npu*'], "
        "install_for={'npu': 'install for npu', 'cpu': 'install for cpu'}"
    )
    site.add("needy", backends("alpha", more=more))
    assert rows(site)["alpha"].fix == command


def test_a_met_requirement_is_not_missing() -> None:
    assert missing_requirements({"attrs": ">=1", "pluggy": ""}) == []


def test_no_hardware_says_what_was_looked_for(site: Site) -> None:
    site.add("npu", backends("alpha", more=", hardware={'npu'}, device_nodes=['/nowhere/npu*']"))
    row = rows(site)["alpha"]
    assert (row.state, row.reason) == ("no-hardware", "needs npu; looked for /nowhere/npu* and found none")


def test_hardware_that_is_there_makes_ready(site: Site, tmp_path: Path) -> None:
    (tmp_path / "dev-npu0").touch()
    site.add(
        "npu", backends("alpha", more=f", hardware={{'npu'}}, device_nodes=[{str(tmp_path / 'dev-npu*')!r}]")
    )
    assert rows(site)["alpha"].state == "ready"


def test_detectors_know_where_to_look(site: Site, tmp_path: Path) -> None:
    site.add("npu", backends("alpha", more=", hardware={'npu'}"))
    assert "no installed detector can look" in rows(site)["alpha"].reason
    spec = f"DetectorSpec(name='npu', factory='a:b', hardware={{'npu'}}, device_nodes=[{str(tmp_path / 'dev-npu*')!r}])"
    site.add("detector", f"{HEAD}@hookimpl\ndef sage_infer_detectors():\n    return [{spec}]\n")
    assert "looked for" in rows(site)["alpha"].reason
    (tmp_path / "dev-npu0").touch()
    assert rows(site)["alpha"].state == "ready"


NEEDY = (
    ", hardware={'npu'}, device_nodes=['/nowhere/npu*'], requires={'no-such-dist': '>=2'}, install='pip install x[npu]'"
    ", needs=[Need(what='driver', files=['/nowhere/driver*'], install='install the driver'),"
    " Need(what='toolkit', files=['/nowhere/kit'], variables=['NO_SUCH_KIT'], install='install the toolkit'),"
    " Need(what='bridge', distributions={'no-such-bridge': '>=1'}, install='pip install bridge'),"
    " Need(what='plug-in', distributions={'attrs': ''}, entry_point='no.group:name', install='pip install plug-in')]"
)


def test_needs_are_told_all_at_once_a_line_each(site: Site) -> None:
    site.add("needy", backends("alpha", more=NEEDY).replace("import BackendSpec", "import Need, BackendSpec"))
    row = rows(site)["alpha"]
    assert (row.state, row.reason) == (
        "missing-requirement", "lacks no-such-dist>=2, driver, toolkit, bridge, plug-in, hardware",
    )  # fmt: skip
    assert [str(missing) for missing in row.missing] == [
        "no-such-dist>=2: not installed; pip install x[npu]",
        "driver: /nowhere/driver* does not exist; install the driver",
        "toolkit: none of /nowhere/kit, $NO_SUCH_KIT exists; install the toolkit",
        "bridge: no-such-bridge>=1 not installed; pip install bridge",
        "plug-in: no distribution has the entry point name of no.group; pip install plug-in",
        "hardware: needs npu; looked for /nowhere/npu* and found none; run it on a machine with npu",
    ]
    assert row.as_dict()["missing"][1] == {
        "what": "driver", "found": "/nowhere/driver* does not exist", "install": "install the driver",
    }  # fmt: skip


def test_needs_that_are_met_leave_the_hardware(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver-1").touch()
    monkeypatch.setenv("SOME_KIT", str(tmp_path))
    needs = (
        f", needs=[Need(what='driver', files=['/nowhere', {str(tmp_path / 'driver*')!r}], install='x'),"
        " Need(what='toolkit', variables=['SOME_KIT'], install='x'),"
        " Need(what='bridge', distributions={'no-such-dist | attrs': '>=1'}, install='x'),"
        " Need(what='plug-in', entry_point='pytest11:hypothesispytest', install='x')]"
    )
    code = backends("alpha", more=f", hardware={{'npu'}}, device_nodes=['/nowhere']{needs}")
    site.add("needy", code.replace("import BackendSpec", "import Need, BackendSpec"))
    row = rows(site)["alpha"]
    assert (row.state, [missing.what for missing in row.missing]) == ("no-hardware", ["hardware"])
    site.add("ready", backends("beta", more=needs).replace("import BackendSpec", "import Need, BackendSpec"))
    assert (rows(site)["beta"].state, rows(site)["beta"].reason) == ("ready", "")


def test_releases_that_work_together_and_vendors_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("toy-engine", "1.2.0+acme.9"), ("toy-plug-in", "1.2.3")):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)

    def lines(**conditions: Any) -> list[str]:
        return [str(line) for line in unmet_needs([Need(what="stack", install="x", **conditions)])]

    old, new = (
        {"toy-engine": f"=={release}.*", "toy-plug-in": f"=={release}.*"} for release in ("1.1", "1.2")
    )
    assert lines(pairs=[old, new]) == []
    assert lines(pairs=[{"toy-engine": "==1.1.*", "not-installed-at-all": ">=1"}]) == []
    assert lines(pairs=[old]) == [
        "stack: toy-engine 1.2.0+acme.9 and toy-plug-in 1.2.3 do not work together; install toy-engine==1.1.* with "
        "toy-plug-in==1.1.*; x"
    ]
    assert lines(labels={"toy-engine": "acme"}) == []
    assert lines(labels={"toy-plug-in": "acme"}) == [
        "stack: toy-plug-in 1.2.3 is installed, expected the vendor's build (+acme); x"
    ]


def test_files_are_looked_for_below_a_root(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = (
        ", hardware={'npu'}, device_nodes=['/dev/npu*'], "
        "needs=[Need(what='kit', files=['/opt/kit-*'], install='x')]"
    )
    site.add(
        "rooted", backends("alpha", more=needs).replace("import BackendSpec", "import Need, BackendSpec")
    )
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert [missing.what for missing in rows(site)["alpha"].missing] == ["kit", "hardware"]
    for file in ("opt/kit-1", "dev/npu0"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    assert rows(site)["alpha"].state == "ready"


def test_models_of_plugins(site: Site) -> None:
    spec = "ModelSpec(name='tiny', model_type='llm', resolver='a:b')"
    site.add("models", f"{HEAD}@hookimpl\ndef sage_infer_models():\n    return [{spec}]\n")
    registry = site.registry()
    assert list(model_specs(registry)) == ["tiny"]
    assert registry.kv_stores() == registry.transports() == registry.executors() == []


HEAVY = ("rich", "typer", "cattrs", "yaml", "numpy", "torch", "openvino", "pydantic", "importlib_metadata")


@pytest.mark.parametrize(
    "statement",
    [
        "import sage_infer",
        "import sage_infer; sage_infer.SageInferError",
        "from sage_infer import BackendSpec, hookimpl",
        "from sage_infer.discovery import backend_info, discover; backend_info(discover())",
    ],
)
def test_importing_and_listing_load_nothing_heavy(statement: str, tmp_path: Path) -> None:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert not set(HEAVY) & set(json.loads(done.stdout))


def test_the_front_door_is_lazy_and_complete() -> None:
    import sage_infer

    assert all(getattr(sage_infer, name) is not None for name in sage_infer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sage_infer.nothing  # type: ignore[attr-defined]


SPECS = [value for name, value in vars(hookspecs).items() if name.startswith("sage_infer_")]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_hook_says_what_for_what_it_returns_when_and_in_which_order(spec: object) -> None:
    doc = inspect.getdoc(spec) or ""
    assert not doc.startswith(":")
    for part in (":return:", "\nCalled ", "\nOrder: ", ".. versionadded::"):
        assert part in doc
    with pytest.raises(NotImplementedError):
        spec()  # type: ignore[operator]


def test_a_distribution_is_described() -> None:
    core = describe_distribution("sage-infer-core")
    assert core["version"][0].isdigit()
    assert core["location"]
    assert describe_distribution("no-such-dist")["version"] == "not installed"


def test_distributions_with_the_wheels_that_they_require(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, lines in (
        ("sage-one", ["attrs>=25", "sage-two>=0.1,<0.2", "sage-three; extra == 'more'"]),
        ("sage-two", ["sage-one"]),
    ):
        folder = tmp_path / f"{name.replace('-', '_')}-0.1.dist-info"
        folder.mkdir()
        required = "".join(f"Requires-Dist: {line}\n" for line in lines)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n{required}")
    monkeypatch.syspath_prepend(tmp_path)
    assert with_required(["sage-one", "sage-gone"]) == ["sage-gone", "sage-one", "sage-two"]
