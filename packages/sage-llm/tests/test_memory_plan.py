"""The machine's memory is divided between the replicas before any is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plane import small_llm
from sage_infer.errors import OutOfMemory
from sage_infer.schemas import ModelDescriptor
from sage_infer_planning.estimate import GIB
from sage_infer_planning.memory_planner import Device
from sage_llm.commands.memory import machine_devices, with_memory
from sage_llm.manager.models import ServedModel
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE


def cpu(gib: float) -> list[Device]:
    return [Device(name="cpu", total=int(gib * GIB), usable=int(gib * GIB))]


def llm(path: str, replicas: int, prefill: int = 0, **options: object) -> ServedModel:
    return ServedModel(
        descriptor=ModelDescriptor(model_id="m", model_type="llm", model_path=path),
        backend="openvino",
        options=options,
        replicas=replicas,
        prefill_replicas=prefill,
    )


def kv(model: ServedModel) -> float:
    sizes = {spec.options["kv_cache_gb"] for spec in model.specs}
    assert len(sizes) == 1, "all replicas hold the same number of tokens"
    return float(sizes.pop())


def test_replicas_divide_the_memory(smollm2: str) -> None:
    (plenty,) = with_memory([llm(smollm2, 2)], cpu(64))
    (few,) = with_memory([llm(smollm2, 2)], cpu(2))
    (split,) = with_memory([llm(smollm2, 2, prefill=2)], cpu(4))
    (many,) = with_memory([llm(smollm2, 4)], cpu(3))
    assert kv(plenty) > kv(few) > kv(many) > 0
    assert kv(split) == kv(few)
    assert 4 * kv(many) < 3
    (alone,) = with_memory([llm(smollm2, 1)], cpu(2))
    assert kv(alone) > kv(few)


def test_what_the_user_has_set_stays(smollm2: str, minilm: str) -> None:
    encoder = ServedModel(
        descriptor=ModelDescriptor(model_id="e", model_type="embedding", model_path=minilm),
        backend="openvino-embedding",
    )
    own, other = with_memory([llm(smollm2, 2, kv_cache_gb=0.5), encoder], cpu(8))
    assert kv(own) == 0.5
    assert other.options == {}


def test_replicas_that_do_not_fit_are_one_error(smollm2: str) -> None:
    with pytest.raises(OutOfMemory) as caught:
        with_memory([llm(smollm2, 40)], cpu(4))
    message = caught.value.message
    assert message.startswith("40 replicas do not fit on this machine together: 40 of 'm' need at least 0.")
    assert "usable: cpu 4.00 GiB; at most " in message
    assert "\n" not in message
    most = int(message.partition("at most ")[2].partition(" ")[0])
    assert with_memory([llm(smollm2, most)], cpu(4))
    with pytest.raises(OutOfMemory):
        with_memory([llm(smollm2, most + 1)], cpu(4))
    with pytest.raises(OutOfMemory, match="lower max_sequence_length"):
        with_memory([llm(smollm2, 2)], cpu(0.1))


def test_replicas_on_accelerators_get_devices_of_their_own(smollm2: str) -> None:
    pytest.importorskip("sage_infer_vllm", reason="the embedded engine runs on no accelerator")
    model = ServedModel(
        descriptor=ModelDescriptor(model_id="m", model_type="llm", model_path=smollm2),
        backend="vllm",
        replicas=2,
    )
    gpus = [Device(name=f"cuda:{number}", total=8 * GIB, usable=7 * GIB) for number in (0, 1)]
    (planned,) = with_memory([model], [*gpus, *cpu(16)])
    if not planned.devices:
        pytest.skip("this version of the vllm backend reports no memory")
    assert {spec.device_ids for spec in planned.specs} == {(0,), (1,)}
    assert 0 < planned.options["memory_fraction"] < 1


def test_machines_without_known_memory_are_not_planned(smollm2: str) -> None:
    model = small_llm(smollm2, "unused")
    assert with_memory([model], []) == [model]
    assert all(device.usable > 0 for device in machine_devices())


@pytest.mark.skipif(not machine_devices(), reason="no detector of this machine's memory is installed")
def test_serve_refuses_replicas_that_do_not_fit(smollm2: str, tmp_path: Path) -> None:
    environment = {**os.environ, RUN_FOLDER_VARIABLE: str(tmp_path)}
    tmp_path.chmod(0o700)
    command = [
        sys.executable,
        "-m",
        "sage_infer.cli.main",
        "llm",
        "serve",
        "-m",
        "smollm2-135m",
        "--port",
        "0",
    ]
    done = subprocess.run(
        [*command, "--replicas", "1000"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode != 0
    assert "1000 replicas do not fit on this machine together" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
