"""Install each package's wheel alone into an empty environment and run the package's own tests there.

    python tools/alone.py [PACKAGE …]

"Alone" is the wheel with what it requires; other wheels of this repository come only if it requires them. The
tests are copied elsewhere first, so that nothing is imported from the source tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PYTEST_INI = "[pytest]\naddopts = --import-mode=importlib\n"


def main(names: list[str]) -> int:
    packages = sorted(path.parent for path in Path("packages").glob("*/pyproject.toml"))
    failed = []
    with tempfile.TemporaryDirectory(prefix="sage-alone-") as folder:
        wheels = Path(folder, "wheels")
        subprocess.run([sys.executable, "tools/build_wheels.py", str(wheels)], check=True)
        for package in packages:
            if names and package.name not in names:
                continue
            if not passes(package, wheels, Path(folder, package.name)):
                failed.append(package.name)
    print(f"failed alone: {', '.join(failed)}" if failed else "every wheel passes its own tests alone")
    return 1 if failed else 0


def passes(package: Path, wheels: Path, folder: Path) -> bool:
    print(f"\n{package.name}: a new environment …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--find-links", wheels, f"{package.name}[test]"]
    subprocess.run([*map(str, install)], check=True)
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file())
    print(f"{package.name}: installed, {size / 1e6:.0f} MB with pip and the tools of its tests", flush=True)
    shutil.copytree(package / "tests", folder / "tests")
    shutil.copy(package / "README.md", folder)  # its examples are tested too
    (folder / "pytest.ini").write_text(PYTEST_INI)
    # What the tests start must come from this environment too.
    environment = {**os.environ, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [str(python), "-m", "pytest", "-q", "tests"]
    return subprocess.run(command, cwd=folder, env=environment).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
