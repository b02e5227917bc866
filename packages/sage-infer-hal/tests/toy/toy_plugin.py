"""An installed plug-in for the tests: two detectors."""

from sage_infer import DetectorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_detectors() -> list[DetectorSpec]:
    return [
        DetectorSpec(name="toy", factory="toy_detectors:ToyDetector", hardware={"npu"},
                     read_recording="toy_detectors:read"),
        DetectorSpec(name="toy-failing", factory="toy_detectors:Failing", hardware={"npu2"}),
    ]  # fmt: skip
