"""The parts of prefill and decode apart, without an engine: holds, plans, pages, and what a state may say."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from sage_infer.errors import CapabilityMismatch, OutOfMemory, UnsupportedFeature
from sage_infer.schemas import DecodeState, KVCacheSchema, KVGroup, SamplingParams
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.handover.held import Held, HeldStates
from sage_infer_vllm.handover.states import States
from sage_infer_vllm.handover.tail import clear_tail
from sage_infer_vllm.kv.claims import EXCLUDED, connector_arguments, handover_features
from sage_infer_vllm.kv.host_cache import HostCache
from sage_infer_vllm.kv.host_pages import HostPages
from sage_infer_vllm.kv.plan import CONNECTOR, PARAMS, PageLoad
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.worker_side import WorkerSide

np = pytest.importorskip("numpy")

SCHEMA = KVCacheSchema(
    dtype="fp32", page_size=4, num_layers=2, num_heads=2, head_dim=3, format_id="vllm-0-cpu_attn-vec",
    axis_order=("layer", "head", "kv", "token", "dim"), key_axis_order=("layer", "head", "kv", "dim", "token"),
)  # fmt: skip
FACTS = {"layers": [{"backend": "CPU_ATTN"}, {"backend": "CPU_ATTN"}]}


# --- in the engine core


class Pool:
    """A block pool that counts references."""

    def __init__(self) -> None:
        self.blocks = list(range(100))
        self.references: dict[int, int] = {}
        self.free = 100

    def get_num_free_blocks(self) -> int:
        return self.free

    def touch(self, blocks: list[int]) -> None:
        for block in blocks:
            self.references[block] = self.references.get(block, 0) + 1

    def free_blocks(self, blocks: list[int]) -> None:
        for block in blocks:
            self.references[block] -= 1
            if not self.references[block]:
                del self.references[block]


def request(name: str, tokens: int, status: str = "FINISHED_LENGTH_CAPPED", **params: Any) -> Any:
    return SimpleNamespace(
        request_id=name, num_prompt_tokens=tokens, kv_transfer_params={PARAMS: params} if params else None,
        skip_reading_prefix_cache=False, status=SimpleNamespace(name=status),
    )  # fmt: skip


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def side(pool: Pool) -> SchedulerSide:
    found = SchedulerSide(4)
    found.bind(pool)
    return found


def test_a_prefill_is_held_until_it_is_released(side: SchedulerSide, pool: Pool) -> None:
    handed = side.finished(request("a", 6, hold="h"), ([7, 8, 9],))
    assert handed == {PARAMS: {"blocks": [7, 8]}}  # the third is for output
    assert pool.references == {7: 1, 8: 1}
    assert side.finished(request("b", 1, "FINISHED_ABORTED", release=["h", "unknown"]), ()) is None
    assert pool.references == {}


@pytest.mark.parametrize("status", ["FINISHED_STOPPED", "FINISHED_ABORTED"])
def test_a_prefill_that_ended_otherwise_is_not_held(side: SchedulerSide, pool: Pool, status: str) -> None:
    assert side.finished(request("a", 6, status, hold="h"), ([7, 8],)) is None
    assert side.finished(request("b", 6, hold="h"), ()) is None
    assert pool.references == {}


def test_a_decode_loads_what_is_not_found_and_frees_the_hold(side: SchedulerSide, pool: Pool) -> None:
    side.finished(request("a", 10, hold="h"), ([1, 2, 3],))
    decode = request("b", 10, resume="h")
    assert side.matched_tokens(decode, 0) == 9
    assert side.matched_tokens(decode, 4) == 5  # repeatable
    side.allocated(decode, ([1, 5, 6],), 5)
    assert pool.references == {1: 1, 2: 1, 3: 1}  # until the step is planned
    assert side.planned() == (PageLoad((5, 6), held=(2, 3)),)
    assert side.planned() == ()
    assert pool.references == {}
    assert side.matched_tokens(decode, 0) == 0  # preempted: it computes
    side.allocated(decode, ([1, 5, 6],), 0)
    assert side.planned() == ()


def test_a_decode_whose_pages_are_all_found_loads_nothing(side: SchedulerSide, pool: Pool) -> None:
    side.finished(request("a", 5, hold="h"), ([1, 2],))
    decode = request("b", 5, resume="h")
    assert side.matched_tokens(decode, 4) == 0
    side.allocated(decode, ([1, 9],), 0)
    assert side.planned() == ()
    assert pool.references == {}


def test_a_decode_that_has_no_room_beside_its_hold_computes(side: SchedulerSide, pool: Pool) -> None:
    side.finished(request("a", 10, hold="h"), ([1, 2, 3],))
    pool.free = 2
    decode = request("b", 10, resume="h")
    assert side.matched_tokens(decode, 4) == 5  # one page is found, and two fit
    assert pool.references == {1: 1, 2: 1, 3: 1}
    assert side.matched_tokens(decode, 0) == 0
    assert pool.references == {}


def test_a_decode_that_ends_before_it_is_scheduled_frees_the_hold(side: SchedulerSide, pool: Pool) -> None:
    side.finished(request("a", 5, hold="h"), ([1, 2],))
    side.finished(request("b", 5, "FINISHED_ABORTED", resume="h"), ())
    assert pool.references == {}


def test_a_decode_that_ends_in_the_step_that_loads_it(side: SchedulerSide, pool: Pool) -> None:
    side.finished(request("a", 5, hold="h"), ([1, 2],))
    decode = request("b", 5, resume="h")
    side.allocated(decode, ([3, 4],), 4)
    side.finished(decode, ([3, 4],))
    assert side.planned() == (PageLoad((3,), held=(1,)),)
    assert pool.references == {}


def test_imported_pages_are_loaded_once(side: SchedulerSide) -> None:
    decode = request("b", 10, resume="h", file="/shared")
    assert side.matched_tokens(decode, 4) == 5
    side.allocated(decode, ([1, 5, 6],), 5)
    assert side.planned() == (PageLoad((5, 6), file="/shared", first=1),)
    assert side.matched_tokens(decode, 0) == 0
    side.finished(decode, ([1, 5, 6],))


def test_other_requests_are_left_alone(side: SchedulerSide, pool: Pool) -> None:
    plain = request("a", 10)
    assert side.matched_tokens(plain, 0) == 0
    side.allocated(plain, ([1, 2, 3],), 0)
    assert side.finished(plain, ([1, 2, 3],)) is None
    plain.kv_transfer_params = {PARAMS: "no mapping"}
    assert side.matched_tokens(plain, 0) == 0
    unread = request("b", 10, resume="h", file="/shared")
    unread.skip_reading_prefix_cache = True
    assert side.matched_tokens(unread, 0) == 0


# --- in a worker


def worker(blocks: int = 6) -> WorkerSide:
    side = WorkerSide()
    side._cache = HostCache(
        [
            (np.arange(blocks * width).reshape(blocks, width) * 3 + layer).astype(np.uint8)
            for layer, width in enumerate((8, 12))
        ]
    )
    return side


def layers_of(side: WorkerSide) -> list[Any]:
    assert isinstance(side._cache, HostCache)
    return side._cache._layers


def test_pages_move_between_blocks_and_through_shared_memory() -> None:
    side = worker()
    before = [layer.copy() for layer in layers_of(side)]
    side.load([PageLoad((4, 2), held=(1, 2))])
    for layer, old in zip(layers_of(side), before, strict=True):
        assert (layer[4] == old[1]).all()
        assert (layer[2] == old[2]).all()
    pages = HostPages(3 * 20)
    side.read(pages.file, 1, [4, 3])
    assert bytes(pages.view[20:40]) == b"".join(bytes(old[1]) for old in before)
    other = worker()
    other.load([PageLoad((0, 5), file=pages.file, first=1)])
    for layer, old in zip(layers_of(other), before, strict=True):
        assert (layer[0] == old[1]).all()
        assert (layer[5] == old[3]).all()
    pages.close()
    assert bytes(pages.view[20:24]) == bytes(before[0][1][:4])  # stays readable here


def test_pages_that_cannot_be_loaded_are_reported() -> None:
    side = worker()
    pages = HostPages(20)
    with pytest.raises(ValueError, match="ends before page 1"):
        side.load([PageLoad((2, 3), file=pages.file)])
    pages.close()
    with pytest.raises(OSError, match="No such file"):
        side.load([PageLoad((4,), file="/proc/self/fd/none")])
    assert side.take_failed() == {2, 3, 4}
    assert side.take_failed() == set()


def test_memory_that_can_be_copied_is_registered() -> None:
    torch = pytest.importorskip("torch", reason="torch comes with vLLM")
    caches = {f"layers.{i}.attn": torch.full((3, 2, 4), float(i)) for i in (10, 2)}
    side = WorkerSide()
    side.register({**caches, "layers.11.attn": caches["layers.10.attn"]}, 3)
    assert side.page_bytes == 2 * 2 * 4 * 4
    assert layers_of(side)[0].view(np.float32)[0, 0] == 2  # in the order of the layers
    layers_of(side)[1][1] = 0
    assert caches["layers.10.attn"][1].abs().sum() == 0
    elsewhere = WorkerSide()
    elsewhere.register({"layers.0.attn": torch.empty(3, device="meta")}, 3)
    assert elsewhere.page_bytes == 0
    with pytest.raises(RuntimeError, match="cannot be copied"):
        elsewhere.load([PageLoad((1,), held=(2,))])
    assert elsewhere.take_failed() == {1}
    scattered = WorkerSide()  # keys of all blocks, then values of all blocks
    scattered.register({"layers.0.attn": torch.zeros((2, 3, 4)).transpose(0, 1)}, 3)
    assert scattered.page_bytes == 0


# --- memory and holds


def test_shared_memory_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutOfMemory, match="10 bytes of shared memory"):
        HostPages(10)
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UnsupportedFeature, match="only Linux"):
        HostPages(10)


def test_more_shared_memory_than_there_is_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "meminfo"
    monkeypatch.setattr("sage_infer_vllm.kv.host_pages._MEMORY", memory)
    HostPages(10).close()  # the kernel does not say
    memory.write_text("MemTotal: 9 kB\nMemAvailable:       1 kB\n")
    HostPages(1024).close()
    with pytest.raises(OutOfMemory, match="1024 bytes are available"):
        HostPages(1025)


def test_holds_end() -> None:
    async def main() -> None:
        released: list[str] = []
        states = HeldStates(released.append)

        def hold(name: str, blocks: tuple[int, ...], seconds: float = float("inf")) -> Held:
            held = Held(request_id=name, tokens=(1, 2), salt="", cached_tokens=0, blocks=blocks)
            states.add(held, seconds)
            return held

        a, b, c = hold("r/0", (1, 2)), hold("r/1", (1, 3)), hold("other", (4,), seconds=1e-3)
        assert states.blocks == 4
        await eventually(lambda: not states.has(c), "the hold does not end", within_s=300)
        assert released == [c.name]
        states.drop("r")
        assert released == [c.name, a.name, b.name]
        pages = HostPages(8)
        imported = Held(request_id="i", tokens=(1, 2), salt="", cached_tokens=0, pages=pages)
        states.add(imported, 60)
        assert (states.imported_bytes, states.blocks) == (8, 0)
        file = pages.file
        assert imported.params == {"resume": imported.name, "file": file}
        os.close(os.open(file, os.O_RDWR))
        states.close()
        with pytest.raises(OSError, match="No such file"):
            os.open(file, os.O_RDWR)
        assert len(released) == 3

    asyncio.run(main())


# --- what may be claimed


def test_the_connector_is_for_one_device() -> None:
    for device in ("cpu", "cuda"):
        found = connector_arguments({}, device=device, runner="generate")
        assert found["kv_transfer_config"]["kv_connector"] == CONNECTOR
    for arguments, device, runner in (
        ({}, "xpu", "generate"),
        ({}, "cpu", "pooling"),
        ({"tensor_parallel_size": 2}, "cpu", "generate"),
        *(({name: 1}, "cpu", "generate") for name in EXCLUDED),
    ):
        assert connector_arguments(arguments, device=device, runner=runner) == {}


def test_features_need_a_form_that_is_known_to_the_byte() -> None:
    size = SCHEMA.bytes_per_page
    assert handover_features(SCHEMA, FACTS, size) == (("prefill_decode", "kv_export", "kv_import"), "")
    groups = (KVGroup(layers=(0,), kind="sliding", window=8), KVGroup(layers=(1,)))
    unknown = attrs.evolve(SCHEMA, key_axis_order=None)
    for schema, nbytes, features, reason in (
        (SCHEMA, 0, (), "on one CPU device only"),
        (None, size, (), "no schema"),
        (attrs.evolve(SCHEMA, groups=groups), size, (), "several forms"),
        (attrs.evolve(SCHEMA, value_dim=0), size, (), "differ in width"),
        (SCHEMA, size + 1, (), "bytes in the engine"),
        (unknown, size, ("prefill_decode",), "the order of axes"),
    ):
        found, why = handover_features(schema, FACTS, nbytes)
        assert found == features
        assert reason in why
    scaled = attrs.evolve(SCHEMA, dtype="fp8_e4m3", scale_dtype="fp32", scale_granularity="tensor")
    assert handover_features(scaled, FACTS, size // 4) == (("prefill_decode", "kv_export", "kv_import"), "")
    by_token = attrs.evolve(scaled, dtype="int8", scale_granularity="token_head")
    assert handover_features(by_token, FACTS, by_token.bytes_per_page)[0] == ("prefill_decode",)
    on_card = {
        "layers": [{"backend": "FLASH_ATTN"}]
    }  # its pages have one order of axes, keys and values alike
    assert handover_features(unknown, on_card, size) == (("prefill_decode", "kv_export", "kv_import"), "")
    other = {"layers": [{"backend": "FLASHINFER"}]}
    assert handover_features(unknown, other, size)[0] == ("prefill_decode",)


def test_the_rest_of_a_page_is_cleared() -> None:
    page = np.ones(SCHEMA.bytes_per_page // 4, np.float32)
    clear_tail(memoryview(page).cast("B"), SCHEMA, 3)
    parts = page.reshape(2, 2, 2, 12)  # layer, head, kv
    assert (parts[:, :, 0].reshape(2, 2, 3, 4)[..., :3] == 1).all()  # keys by dimension
    assert (parts[:, :, 0].reshape(2, 2, 3, 4)[..., 3:] == 0).all()
    assert (parts[:, :, 1].reshape(2, 2, 4, 3)[:, :, :3] == 1).all()  # values by token
    assert (parts[:, :, 1].reshape(2, 2, 4, 3)[:, :, 3:] == 0).all()


# --- states


def a_state(**changes: Any) -> DecodeState:
    states = States(backend="vllm", model_id="m", kv_model="w", weights_id="", instance_id="i", schema=SCHEMA)
    state = states.of(
        "r", range(6), 9, SamplingParams(adapter=changes.pop("adapter", None)), seed=1,
        salt=changes.pop("salt", ""), cached_tokens=4, text="x", logprob=None, finish_reason=None,
    )  # fmt: skip
    return attrs.evolve(state, **changes)


def test_chunks_are_named_by_what_they_depend_on() -> None:
    names = {
        tuple(chunk.chunk_id for chunk in a_state(**more).chunks)
        for more in ({}, {"salt": "s"}, {"adapter": "a"})
    }
    assert len(names) == 3
    chunks = a_state().chunks
    assert [(chunk.token_start, chunk.token_end) for chunk in chunks] == [(0, 4), (4, 6)]


def test_what_a_state_says_of_itself() -> None:
    states = States(backend="vllm", model_id="m", kv_model="w", weights_id="", instance_id="i", schema=SCHEMA)
    assert states.cached_tokens(a_state()) == 4
    assert states.cached_tokens(a_state(extensions={"vllm": {"cached_tokens": 99}})) == 0
    assert states.cached_tokens(a_state(extensions={"vllm": "odd"})) == 0
    assert states.has_own_keys(a_state())
    assert not states.has_own_keys(a_state(salt="s"))
    assert not states.has_own_keys(a_state(extensions={}))
    with pytest.raises(CapabilityMismatch, match="to model 'x'"):
        states.check(a_state(model_id="x"))
