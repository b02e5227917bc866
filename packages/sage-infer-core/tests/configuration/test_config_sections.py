"""Sections of the configuration that plug-ins bring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sage_infer.config import InvalidConfig, config_template, disabled_plugins, load_config, loading
from sage_infer.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Site

PLUGIN = """
from sage_infer import ConfigSpec, hookimpl
@hookimpl
def sage_infer_config():
    return [ConfigSpec(name={name!r}, settings={settings!r}, template="garden:TEMPLATE")]
"""
GARDEN = """
from attrs import field, frozen
from sage_infer.checks import Flag, Integer
@frozen(kw_only=True)
class Garden:
    rows: int = field(default=3, validator=Integer(ge=1))
    fenced: bool = field(default=False, validator=Flag())
@frozen(kw_only=True)
class Bare:
    rows: int
TEMPLATE = '''# The garden.
garden:
  # Rows of beans.
  rows: 3

  # Whether hares stay out.
  fenced: false
'''
"""


@pytest.fixture(autouse=True)
def _site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    (site.folder / "garden.py").write_text(GARDEN)
    site.add("good", PLUGIN.format(name="garden", settings="garden:Garden"))


@pytest.fixture
def load(site: Site, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``load_config`` with the site's plug-ins and a file of this text."""

    def call(text: str = "", **environ: str) -> Any:
        registry = site.registry()
        monkeypatch.setattr(loading, "discover", lambda: registry)
        Path("sage_infer.yaml").write_text(text)
        return load_config(environ=environ)

    return call


def test_a_section_has_layers_and_origins_as_those_of_the_core(load: Any) -> None:
    loaded = load("inference:\n  model: a\ngarden:\n  rows: 5\n", SAGE_INFER_GARDEN_FENCED="true")
    from garden import Garden

    assert loaded.section(Garden) == Garden(rows=5, fenced=True)
    assert loaded.origin("garden.rows") == "file sage_infer.yaml:4"
    assert ("garden.fenced", True, "environment SAGE_INFER_GARDEN_FENCED") in loaded.rows()
    assert loaded.config.inference.model == "a"
    assert loaded.warnings == ()


def test_mistakes_in_a_section_name_line_and_nearest_key(load: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load("garden:\n  rwos: 5\n  fenced: 7\ngardn: {}\n", SAGE_INFER_GARDEN_ROWS="0")
    assert caught.value.problems == [
        "sage_infer.yaml:2: garden.rwos is not a known key; did you mean 'rows'?",
        "sage_infer.yaml:3: garden.fenced must be true or false, got 7 (int)",
        "sage_infer.yaml:4: gardn is not a known key; did you mean 'garden'?",
        "environment SAGE_INFER_GARDEN_ROWS: garden.rows must be ≥ 1, got 0",
    ]


@pytest.mark.parametrize(("section", "wheel"), [("serve", "sage-infer-serve"), ("llm", "sage-llm")])
def test_a_section_of_a_wheel_that_is_not_installed_is_ignored_and_names_it(
    load: Any, section: str, wheel: str
) -> None:
    (warning,) = load(f"{section}:\n  port: 1\n").warnings
    assert warning == (
        f"sage_infer.yaml:1: section {section} is ignored: it belongs to {wheel}, which is not installed "
        f"(pip install {wheel})"
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("garden:Bare", "section 'beds' of bad-dist: garden:Bare has no default for rows"),
        ("garden:TEMPLATE", "garden:TEMPLATE is not an attrs class"),
        ("garden:Nothing", "section 'beds' of bad-dist cannot be loaded from garden:Nothing: AttributeError"),
    ],
)
def test_a_broken_section_is_told_where_it_is_used_and_others_work(
    site: Site, load: Any, settings: str, reason: str
) -> None:
    site.add("bad", PLUGIN.format(name="beds", settings=settings))
    assert load("garden:\n  rows: 7\n").origin("garden.rows") == "file sage_infer.yaml:2"
    with pytest.raises(ConfigError, match=r"sage_infer\.yaml:1: section beds cannot be read: ") as caught:
        load("beds: {}\n")
    assert reason in str(caught.value)


def test_the_template_has_every_section_and_says_which_is_broken(site: Site, load: Any) -> None:
    site.add("bad", PLUGIN.format(name="beds", settings="garden:Garden").replace("garden:TEMPLATE", "no:T"))
    load()
    text = config_template()
    assert text.startswith("# sage-infer configuration")
    assert "# section beds: section 'beds' of bad-dist cannot be loaded from no:T" in text
    assert text.endswith("  # Whether hares stay out.\n  fenced: false\n")
    load(text)


def test_what_is_switched_off_is_known_before_plug_ins_are(load: Any) -> None:
    Path("sage_infer.yaml").write_text('garden: {rows: 0}\nplugins:\n  disabled: "a, b"\n')
    with pytest.raises(InvalidConfig, match=r"plugins\.disabled"):
        disabled_plugins(environ={})
    Path("sage_infer.yaml").write_text("garden: {rows: 0}\n")
    assert disabled_plugins(
        environ={"SAGE_INFER_PLUGINS_DISABLED": "[c]", "SAGE_INFER_GARDEN_ROWS": "x"}
    ) == {"c"}
