"""Configuration: what wins, where it came from, and every mistake with its place."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.config import Config, InvalidConfig, LoadedConfig, load_config
from sage_infer.config.loading import installed_config_class
from sage_infer.config_file.settings import keys
from sage_infer.errors import ConfigError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of the machine's is in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("SAGE_INFER_CONFIG", raising=False)


def load(text: str | None = None, environ: dict[str, str] | None = None, **flags: object) -> LoadedConfig:
    if text is not None:
        Path("sage_infer.yaml").write_text(text, encoding="utf-8")
    return load_config(environ=environ or {}, flags={n.replace("__", "."): v for n, v in flags.items()})


def problems(text: str | None = None, environ: dict[str, str] | None = None, **flags: object) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        load(text, environ, **flags)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


# --- what wins


def test_defaults() -> None:
    loaded = load()
    assert loaded.config == installed_config_class()()
    assert loaded.path is None
    assert loaded.origin("inference.backend") == "default"
    assert loaded.config.inference.backend == "openvino"
    assert loaded.config.inference.model == "smollm2-135m"
    assert loaded.config.inference.embedding_backend == "openvino-embedding"
    assert loaded.config.inference.embedding_model == "minilm"
    assert loaded.config.kv_schema.preset is None
    assert loaded.config.transport.preset == "high-bw"


def test_each_layer_wins_over_the_one_below() -> None:
    text = "inference:\n  backend: from-file\n  model: from-file\n  embedding_model: from-file\n"
    environ = {"SAGE_INFER_INFERENCE_BACKEND": "from-env", "SAGE_INFER_INFERENCE_MODEL": "from-env"}
    loaded = load(text, environ, inference__backend="from-flag")
    assert loaded.config.inference.backend == "from-flag"
    assert loaded.origin("inference.backend") == "flag --backend"
    assert loaded.config.inference.model == "from-env"
    assert loaded.origin("inference.model") == "environment SAGE_INFER_INFERENCE_MODEL"
    assert loaded.config.inference.embedding_model == "from-file"
    assert loaded.origin("inference.embedding_model") == "file sage_infer.yaml:4"
    assert loaded.origin("inference.embedding_backend") == "default"


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(None, {}, inference__backend=None).config == installed_config_class()()


def test_flag_names_say_what_the_user_typed() -> None:
    names = {"inference.embedding_backend": "--backend"}
    loaded = load_config(environ={}, flags={"inference.embedding_backend": "x"}, flag_names=names)
    assert loaded.origin("inference.embedding_backend") == "flag --backend"
    with pytest.raises(
        InvalidConfig, match=r"^flag --backend: inference\.embedding_backend must be a string"
    ):
        load_config(environ={}, flags={"inference.embedding_backend": 3}, flag_names=names)


def test_mappings_merge_entry_by_entry() -> None:
    text = "models:\n  aliases:\n    a: file\n    b: file\n"
    loaded = load(text, {"SAGE_INFER_MODELS_ALIASES": "{b: env, c: env}"})
    assert loaded.config.models.aliases == {"a": "file", "b": "env", "c": "env"}
    assert loaded.origin("models.aliases.a") == "file sage_infer.yaml:3"
    assert loaded.origin("models.aliases.b") == "environment SAGE_INFER_MODELS_ALIASES"


def test_options_stay_with_their_backend() -> None:
    text = "inference:\n  options: {threads: 2}\n  embedding_options: {threads: 1}\n"
    assert load(text, {}, inference__backend="openvino").config.inference.options == {"threads": 2}
    other = load(text, {}, inference__backend="vllm")
    assert other.config.inference.options == {}
    assert other.origin("inference.options") == "default"
    assert other.config.inference.embedding_options == {"threads": 1}
    environ = {"SAGE_INFER_INFERENCE_BACKEND": "vllm", "SAGE_INFER_INFERENCE_OPTIONS": "{gpu: 0}"}
    assert load(text, environ).config.inference.options == {"gpu": 0}


def test_disable_variable_adds_to_the_list() -> None:
    text = "plugins:\n  disabled: [a, b]\n"
    loaded = load(text, {"SAGE_INFER_DISABLE": " b, c ,,"})
    assert loaded.config.plugins.disabled == ("a", "b", "c")
    assert loaded.origin("plugins.disabled") == "file sage_infer.yaml:2 + environment SAGE_INFER_DISABLE"
    assert load(None, {"SAGE_INFER_DISABLE": "x"}).origin("plugins.disabled") != "default"
    replaced = {"SAGE_INFER_PLUGINS_DISABLED": "[z]", "SAGE_INFER_DISABLE": "y"}
    assert load(text, replaced).config.plugins.disabled == ("z", "y")


def test_empty_sections_and_collections_mean_nothing() -> None:
    assert (
        load("inference:\nmodels:\n  aliases:\nplugins:\n  disabled:\n").config == installed_config_class()()
    )
    assert load("# only a comment\n").config == installed_config_class()()
    assert load("", {"SAGE_INFER_INFERENCE_MODEL": "  "}).config == installed_config_class()()


def test_anchors_and_merges() -> None:
    loaded = load("inference: &i\n  model: m\n  options: {a: 1}\ntransport:\n  preset: low-cost\n")
    assert loaded.config.inference.model == "m"
    loaded = load("models:\n  aliases: &a {x: one}\ninference:\n  options: {<<: *a, y: two}\n")
    assert loaded.config.inference.options == {"x": "one", "y": "two"}


def test_text_variables_are_taken_as_they_are() -> None:
    loaded = load(None, {"SAGE_INFER_INFERENCE_MODEL": "1e5", "SAGE_INFER_MODELS_CACHE_DIR": "/a: b"})
    assert loaded.config.inference.model == "1e5"
    assert loaded.config.models.cache_dir == "/a: b"
    text = "models:\n  cache_dir: /somewhere\n"
    assert load(text, {"SAGE_INFER_MODELS_CACHE_DIR": "null"}).config.models.cache_dir is None


def test_dates_stay_text() -> None:
    assert load("inference:\n  model: 2025-01-01\n").config.inference.model == "2025-01-01"


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "c.yaml"
    file.parent.mkdir()
    file.write_text("models:\n  cache_dir: here\n")
    loaded = load_config(file, environ={})
    assert loaded.path_value("models.cache_dir", "here") == tmp_path / "etc" / "here"
    assert loaded.path_value("models.offline", "here") == tmp_path / "here"
    assert loaded.path_value("models.cache_dir", "/abs") == Path("/abs")


def test_rows_show_every_key_once_with_its_origin() -> None:
    rows = load("models:\n  aliases: {a: b}\n", {"SAGE_INFER_KV_SCHEMA_PAGE_SIZE": "32"}).rows()
    names = [name for name, _, _ in rows]
    assert (
        len(names)
        == len(set(names))
        == sum(len(section) for section in keys(installed_config_class()).values())
    )
    assert ("models.aliases.a", "b", "file sage_infer.yaml:2") in rows
    assert ("kv_schema.page_size", 32, "environment SAGE_INFER_KV_SCHEMA_PAGE_SIZE") in rows


def test_origin_of_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match=r"'inference\.bakcend'; did you mean inference\.backend\?"):
        load().origin("inference.bakcend")
    with pytest.raises(ConfigError, match="known: inference"):
        load().origin("zzz")


def test_kv_and_transport_give_what_the_contracts_take() -> None:
    config = load("kv_schema: {page_size: 32}\ntransport: {preset: low-cost, max_in_flight: 9}\n").config
    assert config.kv_schema.overrides == {"page_size": 32}
    assert Config().kv_schema.overrides == {}
    settings = config.transport.settings()
    assert (settings.objective, settings.max_in_flight, settings.compress) == ("cost", 9, True)


# --- what is wrong


def test_every_problem_of_every_layer_at_once() -> None:
    text = (
        "inference:\n  bakcend: x\n  model: 5\n  options: {a: .nan}\n"
        "plugin:\n  disabled: []\nmodels:\n  aliases:\n    x.y: 3\ntransport: {preset: fast}\n"
    )
    found = problems(text, {"SAGE_INFER_MODELS_OFFLINE": "maybe"}, kv_schema__page_size=0)
    assert "sage_infer.yaml:2: inference.bakcend is not a known key; did you mean 'backend'?" in found
    assert "sage_infer.yaml:3: inference.model must be a string, got 5 (int)" in found
    assert "sage_infer.yaml:4: inference.options.a must be finite, got nan" in found
    assert "sage_infer.yaml:5: plugin is not a known key; did you mean 'plugins'?" in found
    assert "sage_infer.yaml:9: models.aliases.x.y must be a string, got 3 (int)" in found
    assert any(
        line.startswith("sage_infer.yaml:10: transport.preset must be one of high-bw") for line in found
    )
    variable = (
        "environment SAGE_INFER_MODELS_OFFLINE: models.offline must be true or false, got 'maybe' (str)"
    )
    assert variable in found
    assert "flag --page-size: kv_schema.page_size must be ≥ 1, got 0" in found
    assert len(found) == 8
    assert [int(line.split(":")[1]) for line in found[:6]] == [2, 3, 4, 5, 9, 10], "in the order of the file"


def test_items_of_lists_have_their_own_line() -> None:
    assert problems("plugins:\n  disabled:\n    - a\n    - 7\n") == [
        "sage_infer.yaml:4: plugins.disabled[1] must be a string, got 7 (int)"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inference:\n  model: [a\n", r"^sage_infer\.yaml:3:1: is not YAML: .*expected"),
        ("a: b: c\n", r"^sage_infer\.yaml:1:5: is not YAML: mapping values are not allowed"),
        ("inference:\n\tmodel: x\n", r"^sage_infer\.yaml:2:1: is not YAML: .*cannot start any token"),
        ("inference:\n  model: a\x07\n", r"^sage_infer\.yaml:2:11: is not YAML: unacceptable character"),
        ("a: 1\n---\nb: 2\n", r"^sage_infer\.yaml:2:1: is not YAML: .*single document"),
        ("a: !!python/object:os.system x\n", r"^sage_infer\.yaml:1:4: is not YAML: could not determine"),
        ("a: !!int x\n", r"^sage_infer\.yaml:1:1: is not YAML"),
        ("? [a]\n: 1\n", r"^sage_infer\.yaml:1:3: is not YAML: .*unhashable"),
        ("[" * 5000, r"^sage_infer\.yaml:1:1: is nested too deeply"),
        ("- a\n- b\n", r"^sage_infer\.yaml:1: the top level must be a mapping of sections \(inference, "),
        ("hello\n", r"^sage_infer\.yaml:1: the top level must be a mapping"),
        ("inference: 5\n", r"^sage_infer\.yaml:1: inference must be a mapping, got 5 \(int\)"),
        ("1: {}\n", r"^sage_infer\.yaml:1: 1 is not a known key"),
        ("a: &x [*x]\n", r"^sage_infer\.yaml:1: contains itself"),
    ],
)
def test_malformed_files(text: str, expected: str) -> None:
    with pytest.raises(InvalidConfig, match=expected):
        load(text)


def test_repeated_keys_name_both_lines() -> None:
    assert problems("inference:\n  model: a\n  model: b\ninference:\n  model: c\n") == [
        "sage_infer.yaml:3: model is repeated (first on line 2)",
        "sage_infer.yaml:4: inference is repeated (first on line 1)",
    ]


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"# fine\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not UTF-8 text \(byte 0xe9\)"):
        load_config(tmp_path / "latin.yaml", environ={})


def test_a_variable_that_is_not_yaml() -> None:
    (found,) = problems(None, {"SAGE_INFER_PLUGINS_DISABLED": "[a"})
    assert found.startswith("environment SAGE_INFER_PLUGINS_DISABLED: 1:3: is not YAML")
    (found,) = problems(None, {"SAGE_INFER_INFERENCE_OPTIONS": "{a: 1, a: 2}"})
    assert found == "environment SAGE_INFER_INFERENCE_OPTIONS: a is repeated (first on line 1)"
    (found,) = problems(None, {"SAGE_INFER_KV_SCHEMA_PAGE_SIZE": "big"})
    assert found == (
        "environment SAGE_INFER_KV_SCHEMA_PAGE_SIZE: kv_schema.page_size must be an integer, got 'big' (str)"
    )


def test_an_unknown_variable_is_a_warning() -> None:
    environ = {"SAGE_INFER_INFERENCE_MODLE": "x", "SAGE_INFER_QQQQ": "1", "OTHER": "1"}
    near, far = load(None, environ).warnings
    assert near.endswith(
        "SAGE_INFER_INFERENCE_MODLE is not a sage-infer variable; did you mean SAGE_INFER_INFERENCE_MODEL?"
    )
    assert "SAGE_INFER_QQQQ" in far
    assert "did you mean" not in far


@given(
    name=st.text(string.ascii_lowercase, min_size=1, max_size=12),
    blank=st.integers(0, 5),
    section=st.sampled_from(["inference", "kv_schema", "transport", "plugins", "models"]),
)
def test_any_unknown_key_is_reported_with_its_line(name: str, blank: int, section: str) -> None:
    if name in keys()[section] or name in ("null", "true", "false", "yes", "no", "on", "off", "y", "n"):
        return
    (found,) = problems("\n" * blank + f"{section}:\n  {name}: 1\n")
    assert found.startswith(f"sage_infer.yaml:{blank + 2}: {section}.{name} is not a known key")


@given(st.text(max_size=60))
def test_no_text_does_anything_but_load_or_be_refused(text: str) -> None:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        return
    Path("fuzz.yaml").write_bytes(raw)
    message = "fuzz.yaml:"
    try:
        load_config("fuzz.yaml", environ={})
    except ConfigError as error:
        message = str(error)
    assert message.startswith("fuzz.yaml:")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab.<:", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), json_values, max_size=4))
def test_options_round_trip_through_a_file(options: dict[str, object]) -> None:
    import yaml

    text = yaml.safe_dump({"inference": {"options": options}}, allow_unicode=True)
    assert load(text).config.inference.options == options
