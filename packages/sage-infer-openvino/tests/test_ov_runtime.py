"""Importing this package must not send telemetry."""

import os
import subprocess
import sys
from pathlib import Path


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """OpenVINO reports its import unless the user opted out; it leaves an identifier in ``~/intel`` when it
    does.
    """
    code = (
        "import sys; from sage_infer_openvino.ov_runtime import ov; "
        "assert 'openvino_telemetry' not in sys.modules; "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("CI", None)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []
