"""The library runs no plug-in and loads no engine, and every public name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_every_public_name_is_there_and_nothing_heavy_comes_along() -> None:
    code = (
        "import sys, sage_infer_planning as p\n"
        "for name in p.__all__: getattr(p, name)\n"
        "heavy = {'numpy', 'torch', 'openvino', 'vllm', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    example, output = re.findall(r"```(?:python|console)\n(.*?)```", readme, re.DOTALL)[-2:]
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == output.partition("\n")[2]
