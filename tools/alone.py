"""Install each package's wheel alone into an empty environment and run the package's own tests there.

    python tools/alone.py [--all] [PACKAGE …]

"Alone" means the wheel and its requirements; other wheels of this repository are installed only if required. The
tests are copied to another folder first, so that nothing is imported from the source tree. The environments have the
Python that runs this file; wheels that require a newer one are left out.

This finds what is right only beside the other packages: a requirement that is not declared, a file that is not in the
wheel, a test that needs another wheel or the repository. How the code behaves is shown by `dev.py test`, so every test
module is imported and each test function runs, but with the first of its cases only, and tests marked ``long`` and
property tests do not run. With ``--all`` all tests run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2
PYTEST_INI = """
[pytest]
addopts = --import-mode=importlib
markers =
  long: takes seconds, and shows nothing about the wheel
  vllm_newest: runs on the newest vLLM only
"""
SAMPLE = """
import pytest

@pytest.hookimpl(trylast=True)  # after the plug-in of hypothesis has marked its tests
def pytest_collection_modifyitems(config, items):
    chosen, others = {}, []
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in chosen or item.get_closest_marker("long") or item.get_closest_marker("hypothesis"):
            others.append(item)
        else:
            chosen[function] = item
    items[:] = chosen.values()
    config.hook.pytest_deselected(items=others)
"""
"""A plug-in of pytest that keeps the first case of each test function, without long tests and property tests."""


def main(arguments: list[str]) -> int:
    every, names = "--all" in arguments, [name for name in arguments if name != "--all"]
    packages = [
        path.parent for path in sorted(Path("packages").glob("*/pyproject.toml")) if claims_this(path)
    ]
    chosen = [package for package in packages if package.name in (names or [package.name])]
    chosen.sort(key=lambda package: -len(list(package.rglob("test_*.py"))))  # the long ones first
    with tempfile.TemporaryDirectory(prefix="sage-alone-") as folder:
        wheels = Path(folder, "wheels")
        subprocess.run([sys.executable, "tools/build_wheels.py", str(wheels)], check=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = pool.map(
                lambda package: passes(package, wheels, Path(folder, package.name), every), chosen
            )
            failed = [package.name for package, passed in zip(chosen, results, strict=True) if not passed]
    print(f"failed alone: {', '.join(failed)}" if failed else "every wheel passes its own tests alone")
    return 1 if failed else 0


def claims_this(project: Path) -> bool:
    """Whether a package supports the running Python."""
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"$', project.read_text(), flags=re.MULTILINE)
    return oldest is None or sys.version_info >= (3, int(oldest[1]))


def passes(package: Path, wheels: Path, folder: Path, every: bool) -> bool:
    started = time.monotonic()
    if missing := not_packed(package, wheels):
        print(f"{package.name}: the wheel lacks {', '.join(missing)}", flush=True)
        return False
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--find-links", wheels]
    subprocess.run([*map(str, install), f"{package.name}[test]"], check=True)
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file())
    shutil.copytree(package / "tests", folder / "tests")
    shutil.copy(package / "README.md", folder)  # its examples are tested too
    (folder / "pytest.ini").write_text(PYTEST_INI)
    (folder / "sage_alone_sample.py").write_text(SAMPLE)
    # Programs started by the tests must come from this environment too.
    environment = {**os.environ, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [str(python), "-m", "pytest", "-q", *([] if every else ["-p", "sage_alone_sample"]), "tests"]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = done.stdout if done.returncode else done.stdout.rstrip().rpartition("\n")[2]
    seconds = time.monotonic() - started
    print(
        f"{package.name}: {size / 1e6:.0f} MB with pip and the tools of its tests, {seconds:.0f} s\n{said}",
        flush=True,
    )
    return done.returncode == 0


def not_packed(package: Path, wheels: Path) -> list[str]:
    """Files of the package that its wheel does not have."""
    (wheel,) = wheels.glob(f"{package.name.replace('-', '_')}-*.whl")
    source = package / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as packed:
        lacking = files - set(packed.namelist())
    return sorted(path for path in lacking if "__pycache__" not in path)  # compiled by Python and by numba


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
