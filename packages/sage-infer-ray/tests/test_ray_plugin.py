"""The plug-in without Ray: what it registers, and what it says where Ray is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import sage_infer_ray
from sage_infer.errors import BackendUnavailable
from sage_infer.plugins import find_plugin, open_executor


def has_ray() -> bool:
    try:
        version("ray")
    except PackageNotFoundError:
        return False
    return True


def test_listing_the_executor_does_not_import_ray() -> None:
    code = (
        "import sys; from sage_infer.plugins import list_plugins; "
        "rows = [row.name for row in list_plugins('executor')]; assert 'ray' in rows, rows; "
        "import sage_infer_ray; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(has_ray(), reason="Ray is installed")
def test_without_ray_the_error_says_what_to_install() -> None:
    assert find_plugin("ray", "executor").state == "missing-requirement"
    with pytest.raises(BackendUnavailable, match=r"ray.*pip install 'sage-infer-ray\[ray\]'"):
        open_executor("ray")


def test_the_front_door_has_the_executor() -> None:
    assert sage_infer_ray.__all__ == ["RayExecutor"]
