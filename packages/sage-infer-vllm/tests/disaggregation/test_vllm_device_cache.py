"""Pages in a device's memory. Runs where there is a CUDA device; ``benchmarks/on_cuda.py`` runs it there."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from sage_infer_vllm.kv.device_cache import DeviceCache
from sage_infer_vllm.kv.worker_side import WorkerSide

torch = pytest.importorskip("torch", reason="torch comes with vLLM")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

BLOCKS, WIDTHS = 40, (8192, 12288, 8192)


def layers() -> list[Any]:
    return [torch.randint(0, 256, (BLOCKS, width), dtype=torch.uint8, device="cuda") for width in WIDTHS]


def expected(memory: list[Any], block: int) -> bytes:
    return b"".join(layer[block].cpu().numpy().tobytes() for layer in memory)


@pytest.mark.parametrize("at_once", [1, 3, 64])
@pytest.mark.parametrize("registered", [True, False])
def test_pages_move_between_device_and_host(at_once: int, registered: bool) -> None:
    memory = layers()
    cache = DeviceCache(memory)
    cache._at_once = at_once
    host = np.zeros((BLOCKS, cache.page_bytes), np.uint8)
    if registered:
        cache.register(host.reshape(-1))
    taken = [5, 39, 0, 17, 3]
    cache.read(taken, list(host[:5]))
    assert [page.tobytes() for page in host[:5]] == [expected(memory, block) for block in taken]
    filled = [1, 2, 38, 20, 9]
    cache.write(list(host[:5]), filled)
    assert [expected(memory, block) for block in filled] == [page.tobytes() for page in host[:5]]
    before = expected(memory, 30)
    cache.move([30, 31, 5], [6, 31, 7])
    assert expected(memory, 6) == before
    assert expected(memory, 7) == host[0].tobytes()


def test_saved_pages_are_those_of_the_step() -> None:
    memory = layers()
    cache = DeviceCache(memory)
    host = np.zeros((BLOCKS, cache.page_bytes), np.uint8)
    cache.register(host.reshape(-1))
    before, complete = [expected(memory, block) for block in range(BLOCKS)], threading.Event()
    cache.save(range(BLOCKS), list(host), complete.set)
    for layer in memory:  # what the next step does to blocks that were freed
        layer.zero_()
    assert complete.wait(60)
    assert [page.tobytes() for page in host] == before


def test_a_worker_registers_the_memory_of_a_device() -> None:
    side = WorkerSide()
    side.register({f"layers.{n}.attn": torch.zeros((4, 2, 16), device="cuda") for n in range(2)}, 4)
    assert side.page_bytes == 2 * 2 * 16 * 4
