"""Install each package's wheel alone into an empty environment and run the package's own tests there.

    python tools/alone.py [PACKAGE …]

"Alone" means the wheel and its requirements; other wheels of this repository are installed only if required. The
tests are copied to another folder first, so that nothing is imported from the source tree. The environments have the
Python that runs this file; wheels that require a newer one are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2
PYTEST_INI = "[pytest]\naddopts = --import-mode=importlib\n"


def main(names: list[str]) -> int:
    packages = [
        path.parent for path in sorted(Path("packages").glob("*/pyproject.toml")) if claims_this(path)
    ]
    chosen = [package for package in packages if package.name in (names or [package.name])]
    with tempfile.TemporaryDirectory(prefix="sage-alone-") as folder:
        wheels = Path(folder, "wheels")
        subprocess.run([sys.executable, "tools/build_wheels.py", str(wheels)], check=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = pool.map(lambda package: passes(package, wheels, Path(folder, package.name)), chosen)
            failed = [package.name for package, passed in zip(chosen, results, strict=True) if not passed]
    print(f"failed alone: {', '.join(failed)}" if failed else "every wheel passes its own tests alone")
    return 1 if failed else 0


def claims_this(project: Path) -> bool:
    """Whether a package supports the running Python."""
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"$', project.read_text(), flags=re.MULTILINE)
    return oldest is None or sys.version_info >= (3, int(oldest[1]))


def passes(package: Path, wheels: Path, folder: Path) -> bool:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--find-links", wheels, f"{package.name}[test]"]
    subprocess.run([*map(str, install)], check=True)
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file())
    shutil.copytree(package / "tests", folder / "tests")
    shutil.copy(package / "README.md", folder)  # its examples are tested too
    (folder / "pytest.ini").write_text(PYTEST_INI)
    # Programs started by the tests must come from this environment too.
    environment = {**os.environ, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [str(python), "-m", "pytest", "-q", "tests"]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
