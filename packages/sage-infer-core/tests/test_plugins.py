"""Every kind of thing that plug-ins bring: states, opening, clashes, and whose mistake an error is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from sage_infer import plugins
from sage_infer.discovery import KINDS, KindName, PluginInfo, plugin_info
from sage_infer.discovery.paths import PATH_FIELDS
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    InvalidRequest,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.plugins import (
    find_plugin,
    kv_codec,
    open_detector,
    open_endpoint,
    open_executor,
    open_store,
    open_transport,
)
from sage_infer.schemas import HardwareProfile, KVCacheSchema, TransportSettings

if TYPE_CHECKING:
    from conftest import Site

SPECS: dict[KindName, str] = {
    "backend": "BackendSpec(name={name!r}, factory='parts:Backend', serves={{'llm'}})",
    "detector": "DetectorSpec(name={name!r}, factory='parts:Detector', hardware={{'npu'}})",
    "store": "KVStoreSpec(name={name!r}, factory='parts:Store')",
    "format": "KVFormatSpec(name={name!r}, factory='parts:Codec', format_ids={{'{name}/*'}})",
    "transport": "TransportSpec(name={name!r}, factory='parts:Mover', schemes={{'file'}}, endpoint='parts:Place')",
    "executor": "ExecutorSpec(name={name!r}, factory='parts:Executor')",
    "model": "ModelSpec(name={name!r}, model_type='llm', resolver='parts:find')",
    "command": "CommandSpec(path={name!r}, app='parts:command', summary='x')",
    "config": "ConfigSpec(name={name!r}, settings='parts:Section', template='parts:TEXT')",
}
HEAD = "from sage_infer import *\n"


def source(**kinds: str | list[str]) -> str:
    """A plug-in module with the named things of each kind."""
    text = HEAD
    for kind, names in kinds.items():
        specs = [SPECS[kind].format(name=name) for name in ([names] if isinstance(names, str) else names)]  # type: ignore[index]
        text += f"@hookimpl\ndef {KINDS[kind].hook}():\n    return [{', '.join(specs)}]\n"  # type: ignore[index]
    return text


def everything(name: str) -> str:
    return source(**dict.fromkeys(KINDS, name))  # type: ignore[arg-type]


def found(site: Site, **options: list[str]) -> list[PluginInfo]:
    return plugin_info(site.registry(**options))


@pytest.fixture
def use(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the site's plug-ins those that are discovered."""

    def install() -> None:
        registry = site.registry()
        monkeypatch.setattr(plugins, "discover", lambda: registry)

    return install


def test_there_is_a_row_for_each_thing_of_each_kind(site: Site) -> None:
    site.add("all", everything("mine"))
    assert [(row.kind, row.name, row.state) for row in found(site)] == [
        (kind, "mine", "ready") for kind in KINDS
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_clash_of_each_kind_names_both_wheels_and_the_rest_works(site: Site, kind: KindName) -> None:
    site.add("one", source(**{kind: "same"}))
    site.add("two", source(**{kind: "same"}))
    site.add("all", everything("mine"))
    rows = found(site)
    clashing = [row for row in rows if row.name == "same"]
    assert [(row.kind, row.state) for row in clashing] == [(kind, "broken")] * 2
    for row in clashing:
        assert "one-dist (one_module) and by two-dist (two_module)" in row.reason
    assert [row.state for row in rows if row.name == "mine"] == ["ready"] * len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise SystemExit", "failed: SystemExit"),
        ("return [1]", "got a list with int"),
        ("return None", "NoneType"),
    ],
)
def test_a_hook_that_fails_takes_nothing_else_down(
    site: Site, kind: KindName, body: str, reason: str
) -> None:
    other: KindName = "store" if kind == "backend" else "backend"
    site.add("bad", source(**{other: "kept"}) + f"@hookimpl\ndef {KINDS[kind].hook}():\n    {body}\n")
    site.add("all", everything("mine"))
    rows = found(site)
    (broken,) = [row for row in rows if row.state == "broken"]
    assert (broken.kind, broken.name, broken.plugin.distribution) == ("plugin", "bad", "bad-dist")
    assert reason in broken.reason
    assert sum(row.state == "ready" for row in rows) == len(KINDS) + 1, "also the plug-in's other hook"


@pytest.mark.parametrize(
    ("kind", "name"), [("command", "infer generate"), ("command", "infer"), ("config", "models")]
)
def test_what_the_core_has_itself_is_not_replaced(site: Site, kind: KindName, name: str) -> None:
    site.add("bad", source(**{kind: [name, "mine"]}))
    rows = {row.name: row for row in found(site)}
    assert rows[name].state == "broken"
    assert rows[name].reason == f"{name!r} is built into sage-infer-core and cannot be replaced"
    assert rows["mine"].state == "ready"


def test_what_is_switched_off_is_listed_as_such(site: Site) -> None:
    site.add("one", source(store=["a", "b"]))
    site.add("two", "raise SystemExit")
    rows = {row.name: row for row in found(site, disabled=["a", "two"])}
    assert {name: row.state for name, row in rows.items()} == {
        "two": "disabled",
        "a": "disabled",
        "b": "ready",
    }
    assert "SAGE_INFER_DISABLE" in rows["a"].reason


def test_requirements_and_devices_of_other_kinds_count(site: Site) -> None:
    text = source(store="needy", detector="eye").replace(
        "factory='parts:Store'", "factory='parts:Store', requires={'no-such-dist': '>=2'}"
    )
    site.add("one", text.replace("hardware={'npu'}", "hardware={'npu'}, device_nodes=['/nowhere/npu*']"))
    rows = {row.name: row for row in found(site)}
    assert (rows["needy"].state, rows["needy"].fix) == (
        "missing-requirement",
        "pip install 'no-such-dist>=2'",
    )
    assert (rows["eye"].state, rows["eye"].reason) == (
        "no-hardware", "needs npu; looked for /nowhere/npu* and found none",
    )  # fmt: skip


def test_each_kind_is_opened(site: Site, use: Callable[[], None]) -> None:
    site.add("all", everything("mine"))
    use()
    assert open_detector("mine").detect() == HardwareProfile()
    assert open_executor("mine", workers=3).workers == 3  # type: ignore[attr-defined]
    settings = TransportSettings.from_preset("low-cost")
    assert open_transport("mine", settings=settings).settings is settings  # type: ignore[attr-defined]
    assert open_transport("mine").settings == TransportSettings.from_preset("high-bw")  # type: ignore[attr-defined]
    assert open_endpoint("mine", port=7).port == 7  # type: ignore[attr-defined]


KV = KVCacheSchema.from_preset("fp16", num_layers=1, num_heads=1, head_dim=8)
REFUSALS: dict[str, tuple[Callable[[], Any], type[SageInferError], str]] = {
    "unknown name": (lambda: open_detector("mien"), BackendUnavailable, "no detector 'mien'; did you mean 'mine'?"),
    "unknown option": (
        lambda: open_executor("mine", worker=2), ConfigError,
        "executor 'mine' of all-dist has no option 'worker'; did you mean 'workers'?",
    ),
    "refused on purpose": (lambda: open_executor("mine", workers=0), SageInferError, "^no workers$"),
    "a TypeError of their own": (
        lambda: open_store("mine", schema=KV, model_id="m"), BackendUnavailable,
        "^KV store 'mine' of all-dist: parts:Store failed: TypeError: their own$",
    ),
    "not of the shape": (
        lambda: kv_codec("mine/1"), BackendUnavailable,
        "'mine' of all-dist: parts:Codec returned a Codec, which is not a KVFormatCodec: it lacks ",
    ),
    "no codec": (lambda: kv_codec("other"), BackendUnavailable, "reads 'other'; installed codecs read: mine/[*]"),
    "several kinds": (lambda: find_plugin("mine"), InvalidRequest, "of a command .*; choose one with --kind"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_opened_says_why(site: Site, use: Callable[[], None], case: str) -> None:
    site.add("all", everything("mine"))
    use()
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


def test_a_transport_may_have_no_endpoint(site: Site, use: Callable[[], None]) -> None:
    site.add("one", source(transport="files").replace(", endpoint='parts:Place'", ""))
    use()
    with pytest.raises(UnsupportedFeature, match="transport 'files' of one-dist has no endpoint"):
        open_endpoint("files")


def test_two_codecs_of_one_format_are_both_named(site: Site, use: Callable[[], None]) -> None:
    site.add("one", source(format="a").replace("a/*", "x*"))
    site.add("two", source(format="b").replace("b/*", "*1"))
    use()
    with pytest.raises(ConfigError, match="'a' of one-dist and KV format 'b' of two-dist"):
        kv_codec("x1")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("parts:Nothing", "module parts has no Nothing"),
        ("no_such_parts:Backend", "there is no module no_such_parts"),
        ("parts.below:Backend", "there is no module parts.below"),
        ("exits.below:Backend", "there is no module exits.below"),
        ("wrong:Backend", "SyntaxError"),
        ("exits.there:Backend", ""),
        ("dynamic.below:Backend", ""),
        ("refuses:Backend", ""),
        ("parts:Detector", ""),
        ("lazy_parts:Anything", ""),
        ("branches:Either", ""),
        ("zlib:compress", ""),
    ],
)
def test_dotted_paths_are_looked_up_without_an_import(
    site: Site, use: Callable[[], None], tmp_path: Path, path: str, reason: str
) -> None:
    for folder, source_text in (
        ("exits", "raise SystemExit(7)"),
        ("dynamic", "__path__ = ['/nowhere']\n1 / 0"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(source_text)
    (tmp_path / "exits" / "there.py").write_text("class Backend: ...\n1 / 0")
    (tmp_path / "wrong.py").write_text("def")
    (tmp_path / "refuses.py").write_text("raise RuntimeError('another CPU')")
    (tmp_path / "lazy_parts.py").write_text("def __getattr__(name): ...\nraise RuntimeError('imported')")
    (tmp_path / "branches.py").write_text("try:\n    import x\nexcept ImportError:\n    Either = 1\n1 / 0")
    site.add("one", source(detector="eye", store="held").replace("parts:Detector", path))
    use()
    info = find_plugin("eye")
    if reason:
        assert info.state == "broken"
        assert info.reason.startswith(f"factory {path} does not exist (")
        assert reason in info.reason
        with pytest.raises(BackendUnavailable, match="does not exist"):
            open_detector("eye")
    else:
        assert (info.state, info.reason) == ("ready", "")
    assert find_plugin("held").state == "ready"


def test_every_path_of_a_spec_is_looked_up(site: Site, use: Callable[[], None]) -> None:
    """One table says which fields of the specs are dotted paths."""
    for spec, fields in PATH_FIELDS.items():
        paths = {field.name for field in attrs.fields(spec) if _is_path(field)}
        assert set(fields) == paths, spec.__name__
    site.add("one", source(detector="eye").replace("hardware=", "read_recording='parts:gone', hardware="))
    use()
    assert find_plugin("eye").reason == "read_recording parts:gone does not exist (module parts has no gone)"


def _is_path(field: Any) -> bool:
    check = getattr(field.validator, "check", field.validator)
    return getattr(check, "hint", "").startswith("a dotted path")
