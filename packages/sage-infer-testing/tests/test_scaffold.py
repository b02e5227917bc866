"""``sage infer plugin new``: what it writes, and what it refuses without a trace."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from sage_infer.cli.main import app
from sage_infer.discovery import discover
from sage_infer.errors import InvalidRequest
from sage_infer_testing.scaffold import KINDS, plan_wheel, wheel, write_wheel
from sage_infer_testing.scaffold.cli import _kinds
from sage_infer_testing.stand_in import add_distribution
from typer.main import get_command
from typer.testing import CliRunner


def new(*arguments: str) -> str:
    """What ``sage infer plugin new`` prints to standard output; its errors are raised."""
    done = CliRunner().invoke(app, ["infer", "plugin", "new", *arguments])
    if isinstance(done.exception, Exception):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def refusal(*arguments: str) -> str:
    """The message of an error with exit code 2."""
    with pytest.raises(InvalidRequest) as refused:
        new(*arguments)
    assert refused.value.exit_code == 2
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_makes_a_whole_wheel(kind: str, tmp_path: Path) -> None:
    told = json.loads(new("tide-pool", "--kind", kind, "--into", str(tmp_path), "--json"))
    folder = tmp_path / "sage-infer-tide-pool"
    assert told["folder"] == str(folder)
    assert told["items"] == {kind: "tide-pool"}
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert written == sorted(told["files"])
    assert {"LICENSE", "README.md", ".gitignore", ".github/workflows/test.yml"} < set(written)
    assert "src/sage_infer_tide_pool/py.typed" in written
    assert os.listdir(tmp_path) == ["sage-infer-tide-pool"]
    assert folder.stat().st_mode & 0o055, "others cannot read the folder"
    for path in map(folder.joinpath, written):
        text = path.read_text("utf-8")
        assert "%{" not in text, path
        assert "PACKAGE" not in text, path
        if path.suffix == ".py":
            ast.parse(text)
            assert max(map(len, text.splitlines()), default=0) <= 112, path
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["keywords"] == ["sage-infer-plugin"]
    assert project["entry-points"]["sage_infer.backends"] == {"tide-pool": "sage_infer_tide_pool.plugin"}
    assert all(",<1" in requirement for requirement in project["dependencies"])
    assert "PLACEHOLDER" in (folder / "LICENSE").read_text("utf-8")


def test_kinds_share_a_wheel(tmp_path: Path) -> None:
    told = json.loads(
        new(
            "tide",
            "--kind",
            "embedding",
            "--kind",
            "backend",
            "--kind",
            "embedding",
            "--into",
            str(tmp_path),
            "--json",
        )
    )
    assert told["items"] == {"backend": "tide", "embedding": "tide-embedding"}
    plugin = (tmp_path / "sage-infer-tide/src/sage_infer_tide/plugin.py").read_text("utf-8")
    assert plugin.count("@hookimpl") == 1
    assert plugin.count("specs.BackendSpec(") == 2


def test_a_vendor_has_a_detector_needs_and_checks(tmp_path: Path) -> None:
    told = json.loads(new("sage-infer-tide", "--vendor", "--into", str(tmp_path), "--json"))
    assert told["items"] == {"backend": "tide", "embedding": "tide-embedding", "detector": "tide"}
    assert told["vendor"]
    package = tmp_path / "sage-infer-tide" / "src" / "sage_infer_tide"
    assert {"needs.py", "checks.py"} < {path.name for path in package.iterdir()}
    assert 'hardware={"tide"}' in (package / "plugin.py").read_text("utf-8")
    assert plan_wheel("tide", ["kvstore"], is_vendor=True, into=package).kinds == ("detector", "kvstore")


def test_people_read_the_files_and_the_next_steps(tmp_path: Path) -> None:
    printed = new("tide", "--kind", "kvstore", "--into", str(tmp_path))
    assert printed.splitlines()[0] == str(tmp_path / "sage-infer-tide")
    assert "  src/sage_infer_tide/store.py" in printed.splitlines()


def test_help_has_examples() -> None:
    done = CliRunner().invoke(app, ["infer", "plugin", "new", "--help"])
    assert "sage infer plugin new acme --kind backend" in done.output


def test_kinds_are_completed() -> None:
    assert _kinds("e") == ["embedding", "executor"]
    assert "new" in get_command(app).get_command(None, "infer").get_command(None, "plugin").list_commands(
        None
    )  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    ["", "Acme", "acme npu", "acme--npu", "-acme", "acme-", "9lives", "acme_npu", "../acme", "é", "a" * 41],
)
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="lower-case letters and digits"):
        plan_wheel(name, ["kvstore"], into=tmp_path)
    assert not os.listdir(tmp_path)


def test_an_unknown_kind_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert refusal("tide", "--kind", "kv-store", "--into", str(tmp_path)).endswith("did you mean 'kvstore'?")
    assert "did you mean" not in refusal("tide", "--kind", "zzz", "--into", str(tmp_path))
    assert "--kind is missing" in refusal("tide", "--into", str(tmp_path))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_an_existing_folder_is_kept(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "sage-infer-tide"
    if what == "file":
        folder.write_text("mine")
    elif what == "folder":
        folder.mkdir()
    else:
        folder.symlink_to("nowhere")
    assert "exists already" in refusal("tide", "--kind", "kvstore", "--into", str(tmp_path))
    assert os.listdir(tmp_path) == ["sage-infer-tide"]


def test_the_folder_around_it_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"{missing} is not a folder" in refusal("tide", "--kind", "kvstore", "--into", str(missing))
    assert not missing.exists()


@pytest.mark.usefixtures("vendor")
def test_a_name_that_an_installed_plugin_has_is_refused(tmp_path: Path) -> None:
    assert "kit-vendor has a backend 'toy' already" in refusal(
        "toy", "--kind", "backend", "--into", str(tmp_path / "..")
    )


def test_names_of_wheels_and_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ["--kind", "kvstore", "--into", str(tmp_path)]
    assert "'sage-infer-core'" in refusal("core", *place)
    site = tmp_path / "site"
    add_distribution(site, "sage-infer-tide", "1.0")
    (site / "sage_infer_ebb.py").touch()
    monkeypatch.syspath_prepend(site)
    assert "wheel 'sage-infer-tide'" in refusal("tide", *place)
    assert "package 'sage_infer_ebb'" in refusal("ebb", *place)
    assert os.listdir(tmp_path) == ["site"]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_wheel("tide", ["kvstore"], into=tmp_path)
    write_text = Path.write_text

    def full(path: Path, *arguments: object) -> int:
        if path.name == "store.py":
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(InvalidRequest, match=r"cannot write .*sage-infer-tide: No space left"):
            write_wheel(planned)
    assert not os.listdir(tmp_path)
    planned.folder.mkdir()  # meanwhile
    with pytest.raises(InvalidRequest, match="nothing was written"):
        write_wheel(planned)
    assert os.listdir(tmp_path) == ["sage-infer-tide"]
    assert not os.listdir(planned.folder)


def test_a_wheel_without_the_hal_names_the_cores_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_wheel("tide", ["detector"], into=tmp_path)
    monkeypatch.setattr(wheel, "_is_installed", lambda name: False)
    assert '"sage-infer-hal>=0.' in planned.files()["pyproject.toml"]


def test_the_command_is_a_plugins() -> None:
    assert {entry.name for entry in discover().commands()} >= {"infer plugin new"}
