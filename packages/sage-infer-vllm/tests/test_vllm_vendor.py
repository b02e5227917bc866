"""The kit for vendors' platforms passes on a correct wheel and finds the errors of an incorrect one."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path

import pytest
from sage_infer_testing.child import Recorder

WHEEL = {
    "plugin": """
        from sage_infer import Need
        from sage_infer.sdk.platform_backends import PlatformBackends

        NEEDS = (Need(what="vLLM", distributions={"vllm": ">=0.28,<0.30"}, install="pip install 'vllm>=0.28,<0.30'"),)
        ON_VLLM = PlatformBackends(
            engine_plugin="sage_infer_vllm.plugin", requires={"sage-infer-vllm": ">=0.1"}, install="pip install it",
            hardware="acme", needs=NEEDS,
        )


        def sage_infer_backends():
            return [
                ON_VLLM.spec("vllm", name="acme", factory="WHEEL.backend:Acme", serves={"llm"}, summary=""),
                ON_VLLM.spec("vllm-embedding", name="acme-embedding", factory="WHEEL.backend:AcmeEmbedding",
                             serves={"embedding"}, summary=""),
            ]
        """,
    "backend": """
        from sage_infer_vllm.vendor import Platform, QuantizationMethod, VLLMBackend, VLLMEmbeddingBackend

        ACME = Platform(
            backend_name="acme", engine={"vllm": ">=0.28,<0.30"}, plugin="acme",
            plugin_distributions={"vllm-acme": ">=1"}, hardware_backend="acme", visible_devices="ACME_DEVICES",
            quantization=[QuantizationMethod(name="awq", weight_bits=4)],
            sources={"engine": "x", "plugin": "x", "visible_devices": "x", "quantization": "x"},
        )


        class Acme(VLLMBackend):
            platform = ACME


        class AcmeEmbedding(VLLMEmbeddingBackend):
            platform = ACME
        """,
    "test": """
        from sage_infer_testing import VLLMPlatformContract


        class TestAcme(VLLMPlatformContract):
            module = "WHEEL.plugin"
            stack = {"vllm": "0.29.1", "vllm-acme": "1.2"}
            device = "cuda"
            environment = {"ACME_DEVICES": "2,3"}
        """,
}
MISTAKES = {
    "the adapter is imported while listing": (
        "from sage_infer import Need", "import sage_infer_vllm\nfrom sage_infer import Need",
        "test_lists_and_detects_without_the_adapter",
    ),
    "options of the wrong backend": ('spec("vllm",', 'spec("vllm-embedding",', "test_options_are_the_engines"),
    "a fact without a source": ('"plugin": "x", ', "", "test_every_fact_has_a_source"),
    "no needs": ("needs=NEEDS,", "", "test_needs_name_what_is_missing_and_the_fix"),
    "vLLM's device instead of the vendor's name": (
        'hardware_backend="acme"', 'hardware_backend="cuda"', "test_names_are_the_registered_ones",
    ),
    "an engine of another version": (
        'engine={"vllm": ">=0.28,<0.30"}', 'engine={"vllm": ">=0.30"}',
        "test_the_stack_is_recognized_by_its_metadata",
    ),
    "needs of another version": (
        'distributions={"vllm": ">=0.28,<0.30"}', 'distributions={"vllm": ">=0.30"}',
        "test_the_stack_is_recognized_by_its_metadata",
    ),
    "a plug-in of another name": (
        'vllm-acme": ">=1"}', 'vllm-other": ">=1"}', "test_the_platform_plugin_and_its_version_are_checked",
    ),
    "another vendor's variable": (
        'visible_devices="ACME_DEVICES"', 'visible_devices="CUDA_VISIBLE_DEVICES"', "test_the_table_reaches_the_engine",
    ),
    "an engine that is not vLLM": (
        'engine={"vllm": ">=0.28,<0.30"}', 'engine={"acme-llm": ">=1"}',
        "test_starting_goes_as_far_as_importing_vllm",
    ),
    "a method that no checkpoint has": (
        'QuantizationMethod(name="awq", weight_bits=4)', 'QuantizationMethod(name="fp8", weight_bits=4)',
        "test_quantization_follows_the_table",
    ),
}  # fmt: skip

_numbers = itertools.count(1)


def outcomes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: str = "", replacement: str = ""
) -> dict[str, str]:
    """What becomes of the kit's tests on the wheel, with one piece of its source replaced."""
    name = f"acme_wheel_{next(_numbers)}"  # a module that was imported before would be taken again
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\n")
    assert not wrong or any(wrong in source for source in WHEEL.values())
    for module, source in WHEEL.items():
        lines = [line[8:] for line in source.splitlines()]
        text = "\n".join(lines).replace("WHEEL", name).replace(wrong or "\0", replacement)
        (package / f"{'test_acme' if module == 'test' else module}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    events = io.StringIO()
    options = [f"--rootdir={folder}", f"--config-file={folder / 'pytest.ini'}", "--import-mode=importlib"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(
            [*options, "-p", "no:cacheprovider", str(package / "test_acme.py")], plugins=[Recorder(events)]
        )
    found = [json.loads(line) for line in events.getvalue().splitlines()]
    return {event["name"]: event["outcome"] for event in found if event["event"] == "finished"}


def test_a_careful_wheel_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(tmp_path, monkeypatch)
    assert found
    assert [name for name, outcome in found.items() if outcome not in ("passed", "skipped")] == []
    assert found["test_lists_and_detects_without_the_adapter"] == "passed"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_careless_wheel_is_found(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, replacement, test = MISTAKES[mistake]
    assert outcomes(tmp_path, monkeypatch, wrong, replacement)[test] == "failed"
