"""Where the configuration is found, what it switches off, and the file that explains it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sage_infer.config import (
    config_template,
    disabled_plugins,
    find_config_file,
    load_config,
    write_template,
)
from sage_infer.config.loading import installed_config_class
from sage_infer.config_file.settings import keys
from sage_infer.errors import ConfigError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    for name in ("SAGE_INFER_CONFIG", "SAGE_INFER_DISABLE", "SAGE_INFER_PLUGINS_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path | str, text: str = "") -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- where it is


@pytest.mark.skipif(
    sys.platform != "linux", reason="the user's folder is set by XDG_CONFIG_HOME on Linux only"
)
def test_search_order(tmp_path: Path) -> None:
    places = [
        write(tmp_path / "user/sage-infer/sage_infer.yaml"),
        write("config/sage_infer.yaml"),
        write("sage_infer.yaml"),
    ]
    named = write("named.yaml")
    explicit = write("explicit.yaml")
    environ = {"SAGE_INFER_CONFIG": "named.yaml"}
    assert find_config_file(explicit, environ) == explicit
    assert find_config_file(None, environ) == named
    for place in reversed(places):
        found = find_config_file(None, {})
        assert found is not None
        assert found.samefile(place)
        place.unlink()
    assert find_config_file(None, {"SAGE_INFER_CONFIG": ""}) is None


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^none\.yaml: no such file; .*sage infer config init"):
        load_config("none.yaml", environ={})
    with pytest.raises(
        ConfigError, match=r"none\.yaml \(named by --config or SAGE_INFER_CONFIG\): no such file"
    ):
        load_config(environ={"SAGE_INFER_CONFIG": "none.yaml"})
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, environ={})


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write("sage_infer.yaml")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"^sage_infer\.yaml: cannot be read: Permission denied"):
        load_config(environ={})


# --- what it switches off


def test_nothing_is_disabled_without_file_and_variable() -> None:
    assert disabled_plugins(environ={}) == frozenset()
    assert disabled_plugins(environ={"SAGE_INFER_DISABLE": "a, b"}) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plugins:\n  disabled: [a, b]\n", {"a", "b"}),
        ("plugins:\n  disabled:\n    - a\n", {"a"}),
        ("plugins: {disabled: [a]}\n", {"a"}),
        ('plugins: {"dis\\u0061bled": [a]}\n', {"a"}),
        ("plugins:\n  disabled: []  # none\n", set()),
        ("# disabled: [a]\ninference: {model: x}\n", set()),
        ("plugins:\n  disabled:\n", set()),
        ("plugins:\nmodels: {aliases: {disabled: x}}\n", set()),
        ("nonsense: 1\nplugins: {disabled: [a]}\n", {"a"}),
    ],
)
def test_disabled_in_the_file(text: str, expected: set[str]) -> None:
    write("sage_infer.yaml", text)
    assert disabled_plugins(environ={"SAGE_INFER_DISABLE": "env"}) == expected | {"env"}


def test_disabled_agrees_with_the_whole_configuration() -> None:
    write("sage_infer.yaml", "plugins:\n  disabled: [a]\n")
    environ = {"SAGE_INFER_PLUGINS_DISABLED": "[b]", "SAGE_INFER_DISABLE": "c"}
    assert disabled_plugins(environ=environ) == set(load_config(environ=environ).config.plugins.disabled)


@pytest.mark.parametrize(
    "text", ["plugins: {disabled: a}\n", "plugins: [disabled\n", "- disabled\n", "a: disabled\na: 1\n"]
)
def test_a_wrong_list_is_an_error(text: str) -> None:
    write("sage_infer.yaml", text)
    with pytest.raises(ConfigError, match=r"^sage_infer\.yaml:"):
        disabled_plugins(environ={})


def test_imports_stay_light() -> None:
    """Discovery asks what is disabled before every command."""
    write("sage_infer.yaml", config_template())
    code = (
        "import sys, sage_infer.config as c; c.disabled_plugins();"
        "print([m for m in ('yaml', 'cattrs', 'rich', 'typer', 'platformdirs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_attribute() -> None:
    import sage_infer.config

    with pytest.raises(AttributeError, match="nothing"):
        _ = sage_infer.config.nothing


# --- the file that explains it


def test_template_gives_the_defaults() -> None:
    loaded = load_config(write("t.yaml", config_template()), environ={})
    assert loaded.config == installed_config_class()()
    assert loaded.warnings == ()


def test_template_explains_every_key() -> None:
    text = config_template()
    document = yaml.safe_load(text)
    assert {name: set(section) for name, section in document.items()} == {
        n: set(s) for n, s in keys(installed_config_class()).items()
    }
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("  ") or line.lstrip().startswith("#"):
            continue
        if "#" in line:
            continue
        above = [lines[number - back].strip() for back in range(1, 5)]
        assert any(comment.startswith("#") for comment in above), f"no comment on {line!r}"


def test_write_template_does_not_overwrite() -> None:
    path = write_template("deep/down/mine.yaml")
    assert path.read_text(encoding="utf-8") == config_template()
    path.write_text("changed")
    with pytest.raises(ConfigError, match=r"mine\.yaml already exists; `--force` overwrites it"):
        write_template(path)
    assert path.read_text() == "changed"
    write_template(path, force=True)
    assert path.read_text(encoding="utf-8") == config_template()
    assert [file.name for file in path.parent.iterdir()] == ["mine.yaml"]


def test_write_template_without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    path = write_template("mine.yaml")
    assert path.read_text(encoding="utf-8") == config_template()
    with pytest.raises(ConfigError, match="exists"):
        write_template("mine.yaml")


def test_write_template_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder; name the file to write, such as .*sage_infer\.yaml"):
        write_template(tmp_path)
    write("file")
    with pytest.raises(ConfigError, match="cannot be written: "):
        write_template("file/below.yaml")
