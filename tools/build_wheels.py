"""Build a wheel of every package into a folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path


def main(target: str) -> int:
    packages = sorted(path.parent for path in Path("packages").glob("*/pyproject.toml"))
    folder = Path(target).resolve()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    # Without hatchling here, pip makes an environment with it for every package.
    if importlib.util.find_spec("hatchling"):
        command.append("--no-build-isolation")
    subprocess.run([*command, *map(str, packages)], check=True)
    built = sorted(folder.glob("*.whl"))
    for wheel in built:
        print(f"{wheel.name}  {wheel.stat().st_size / 1000:.0f} kB")
    return 0 if len(built) >= len(packages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
