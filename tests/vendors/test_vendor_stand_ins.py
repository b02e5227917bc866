"""The vendors' backends on vLLM, each under its own name over the CPU build of vLLM that is installed.

Only what computes is the CPU's: the vendor's distributions and files are there by name, and vLLM runs on a platform of
the vendor's name. CI opens one of the backends; with the variable below, as in the nightly run, all of them are opened,
served and pass the contract kit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer_testing.vllm_stand_in import VLLMPlatformStandIn, add_vendor_stack

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="vLLM is not installed in this environment; `hatch run vllm:across` has it",
)

SAGE = [sys.executable, "-m", "sage_infer.cli.main"]
VENDORS = {
    "ascend": (
        VLLMPlatformStandIn(
            platform="vllm_ascend.platform:NPUPlatform", device_type="npu", can_sleep=True,
            visible_devices="ASCEND_RT_VISIBLE_DEVICES",
        ),
        {"vllm": "0.23.0", "vllm-ascend": "0.23.0", "torch-npu": "2.10.0"},
    ),
    "cambricon": (
        VLLMPlatformStandIn(
            platform="vllm_mlu.platforms.mlu:MLUPlatform", device_type="mlu", can_sleep=True,
            visible_devices="MLU_VISIBLE_DEVICES",
        ),
        {"vllm": "0.13.0", "vllm-mlu": "0.13.0", "torch-mlu": "1.28.0"},
    ),
    "hygon": (
        VLLMPlatformStandIn(
            platform="vllm_of_hygon.platform:RocmPlatform", device_type="cuda", builtin="rocm",
            visible_devices="HIP_VISIBLE_DEVICES",
        ),
        {"vllm": "0.18.1+das.dtk2604", "torch": "2.10.0+das.opt1.dtk2604"},
    ),
    "kunlunxin": (
        VLLMPlatformStandIn(
            platform="vllm_kunlun.platforms.kunlun:KunlunPlatform", device_type="cuda", can_sleep=True,
            visible_devices="CUDA_VISIBLE_DEVICES",
        ),
        {"vllm": "0.15.1", "vllm-kunlun": "0.15.1"},
    ),
}  # fmt: skip
ON_CI = "ascend"
ALL = "SAGE_ALL_VENDORS"
OPTIONS = {"dtype": "float32", "eager": True, "max_batch_size": 8, "max_sequence_length": 512}
QUESTION = {
    "model": "smollm2-135m", "temperature": 0, "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}  # fmt: skip
OPENED = """
import asyncio, json, os, signal, sys
from sage_infer import open_backend
from sage_infer.errors import EngineDead
from sage_infer.schemas import SamplingParams


async def main(name, options):
    async with open_backend(name, model="smollm2-135m", serves="llm", **options) as backend:
        capability = backend.get_capability()
        schema = backend.get_kv_schema()
        (stream,) = await backend.generate([504, 3575, 282, 4649, 314], SamplingParams(temperature=0, max_tokens=4))
        tokens = [token async for delta in stream for token in delta.token_ids]
        (stream,) = await backend.generate("Once", SamplingParams(temperature=0, ignore_eos=True))
        processes = backend._running.engine.processes
        (core,) = processes.leaders
        error = ""
        try:
            async for delta in stream:
                if core:
                    os.kill(core, signal.SIGKILL)
                core = 0
        except EngineDead as dead:
            error = str(dead)
        print(json.dumps({
            "backend": capability.backend_name, "hardware": capability.hardware_backend, "tokens": tokens,
            "precisions": capability.supported_precisions, "features": capability.features, "error": error,
            "format": schema.format_id, "page": schema.page_size, "own_group": processes.groups == processes.leaders,
        }))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


def machine(vendor: str, folder: Path) -> dict[str, str]:
    """The environment of a machine with this vendor's stack."""
    plugin = pytest.importorskip(
        f"sage_infer_{vendor}.plugin", reason=f"sage-infer-{vendor} is not installed"
    )
    spec = next(spec for spec in plugin.sage_infer_backends() if spec.name == vendor)
    platform, versions = VENDORS[vendor]
    found = add_vendor_stack(
        folder / "site",
        folder / "root",
        spec.needs,
        versions,
        device_nodes=spec.device_nodes,
        platform=platform,
    )
    add_model(model_specs()["smollm2-135m"])
    paths = [found["PYTHONPATH"], *sys.path]
    return {**os.environ, **found, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def server(command: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[str]:
    """A server's address; it is stopped afterwards."""
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*SAGE, *command, "--port", "0", "--json"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:  # indented JSON, whole at its closing brace
            lines.append(line)
            if line == "}\n":
                break
        assert lines, (folder / "errors").read_text()
        yield json.loads("".join(lines))["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)


def answer(url: str) -> str:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(QUESTION).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_backend_opens_and_names_what_ended_it(vendor: str, tmp_path: Path) -> None:
    if vendor != ON_CI and ALL not in os.environ:
        pytest.skip(f"set {ALL}=1 to open every vendor's backend")
    # As on the vendors' own platforms, where vLLM starts its engine as the variable says.
    method = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"} if vendor == ON_CI else {}
    environment = {**machine(vendor, tmp_path), **method}
    script = tmp_path / "open.py"
    script.write_text(OPENED)
    output = run([sys.executable, str(script), vendor, json.dumps(OPTIONS)], environment)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    platform = import_module(f"sage_infer_{vendor}.platform")
    table = getattr(platform, vendor.upper())
    assert (found["backend"], found["hardware"]) == (vendor, vendor)
    assert tuple(found["precisions"]) == table.precisions or not table.precisions
    assert len(found["tokens"]) == 4
    assert found["page"] == 128
    assert f"-{vendor}" in found["format"]
    assert ("prefix_caching" in found["features"]) is table.prefix_caching
    assert "prefill_decode" not in found["features"]  # the connector is not tested on this hardware
    assert found["own_group"]
    assert "was killed by SIGKILL" in found["error"]


@pytest.mark.skipif(ALL not in os.environ, reason=f"set {ALL}=1 to serve every vendor's backend")
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_backend_is_ready_and_served(vendor: str, tmp_path: Path) -> None:
    environment = machine(vendor, tmp_path)
    rows = {
        row["name"]: row
        for row in json.loads(run([*SAGE, "infer", "backend", "list", "--json"], environment))
    }
    assert (rows[vendor]["state"], rows[vendor]["reason"]) == ("ready", "")
    assert rows[f"{vendor}-embedding"]["state"] == "ready"
    model = {"model": "smollm2-135m", "backend": vendor, "options": OPTIONS}
    (tmp_path / "sage_infer.yaml").write_text(json.dumps({"serve": {"models": [model]}}))
    with server(["infer", "serve"], environment, tmp_path) as url:
        assert "Paris" in answer(url)
    options = [f"--option={name}={str(value).lower()}" for name, value in OPTIONS.items()]
    command = ["llm", "serve", "--model", f"smollm2-135m@{vendor}", *options]
    with server(command, environment, tmp_path) as url:
        assert "Paris" in answer(url)


@pytest.mark.skipif(ALL not in os.environ, reason=f"set {ALL}=1 to test every vendor's backend")
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_backend_passes_the_kit(vendor: str, tmp_path: Path) -> None:
    environment = machine(vendor, tmp_path)
    options = ["-o", "dtype=float32", "-o", "eager=true", "-o", "max_sequence_length=512"]
    command = [*SAGE, "infer", "backend", "test", vendor, "-m", "smollm2-135m", *options, "--json"]
    report = json.loads(run(command, environment))
    assert report["ok"]
    assert report["passed"] > 0
