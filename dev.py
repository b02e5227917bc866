"""Run a task of this repository; requires only Python.

    python3 dev.py demo      a real LLM and a real embedding model answer through the contract
    python3 dev.py test      all tests (arguments go to pytest)
    python3 dev.py alone     each wheel, installed alone, passes its own tests
    python3 dev.py lint | types | imports | wheels

Creates a virtual environment in .venv, installs hatch there, and lets hatch install the rest and run the task.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

HATCH = "hatch==1.18.2"
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
REGISTRY_HELP = (
    "A Python package registry must be reachable. Behind a mirror: set PIP_INDEX_URL. Without a network: put "
    "the wheels into a folder and set PIP_FIND_LINKS=FOLDER and PIP_NO_INDEX=1."
)


def main() -> int:
    version = sys.version_info[:2]  # in a variable, since mypy checks this file for the wheels' oldest Python
    if version < (3, 11):
        return fail(f"Python 3.11 or newer is required, this is {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    python, hatch = BIN / "python", BIN / "hatch"
    if not python.exists() and not step("making .venv", [sys.executable, "-m", "venv", str(VENV)]):
        return fail("the venv module did not work; on Debian and Ubuntu: apt install python3-venv")
    if not hatch.exists() and not step(
        "installing hatch", [str(python), "-m", "pip", "install", "--quiet", HATCH]
    ):
        return fail(REGISTRY_HELP)
    if not step("installing the packages and their tools", [str(hatch), "env", "create"]):
        return fail(REGISTRY_HELP)
    return subprocess.call([str(hatch), "run", *sys.argv[1:]], cwd=ROOT)


def step(what: str, command: list[str]) -> bool:
    """Run a command quietly with a progress line; print its output only on failure."""
    started = time.monotonic()
    finished = threading.Event()
    ticker = threading.Thread(target=tick, args=(what, started, finished))
    ticker.start()
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        finished.set()
        ticker.join()
    state = "done" if done.returncode == 0 else "failed"
    print(f"\r{what}: {state} in {time.monotonic() - started:.0f} s", file=sys.stderr)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0


def tick(what: str, started: float, finished: threading.Event) -> None:
    """Count seconds on a terminal; print a single line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what} …", file=sys.stderr)
        return
    while not finished.wait(0.2):
        print(f"\r{what} … {time.monotonic() - started:.0f} s", end="", file=sys.stderr, flush=True)


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
