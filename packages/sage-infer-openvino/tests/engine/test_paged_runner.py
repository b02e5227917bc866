"""Continuous batching over our own blocks: right against transformers, independent of the batch, and
movable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt, UnsupportedFeature
from sage_infer_openvino.device import compute_precisions
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.models.prepare import PreparedDecoder
from sage_infer_openvino.ov_runtime import ov

pytestmark = pytest.mark.long

Reference = Callable[[str], list[dict[str, Any]]]
STEPS = 32
# Within this distance of each other, two logits are a tie: float32 sums in another order may swap them.
TIE = 1e-3


def tables(runner: PagedRunner, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Blocks for each prompt and STEPS more tokens, handed out from the last block on, so that none is in
    order.
    """
    free = list(range(runner.num_blocks))
    return [[free.pop() for _ in range(-(-(len(prompt) + STEPS) // runner.block_size))] for prompt in prompts]


def greedy(runner: PagedRunner, prompts: Sequence[list[int]], steps: int = STEPS) -> list[list[int]]:
    blocks = tables(runner, prompts)
    logits = runner.step([SequenceSlice(p, 0, b) for p, b in zip(prompts, blocks, strict=True)])
    outputs = [[int(row.argmax())] for row in logits]
    for _ in range(steps - 1):
        batch = [
            SequenceSlice(o[-1:], len(p) + len(o) - 1, b)
            for p, o, b in zip(prompts, outputs, blocks, strict=True)
        ]
        for output, row in zip(outputs, runner.step(batch), strict=True):
            output.append(int(row.argmax()))
    return outputs


def test_greedy_decoding_equals_transformers(runner: PagedRunner, reference: Reference) -> None:
    """20 prompts of 32 tokens, 4-bit weights as they are in the file, against transformers in float32."""
    cases = reference("greedy_smollm2.json")
    outputs = greedy(runner, [case["prompt"] for case in cases])
    for case, output in zip(cases, outputs, strict=True):
        different = [i for i, (a, b) in enumerate(zip(output, case["output"], strict=True)) if a != b]
        assert not different or case["gaps"][different[0]] < TIE, case["text"]


def test_a_batch_equals_separate_sequences(runner: PagedRunner, reference: Reference) -> None:
    prompts = [case["prompt"] for case in reference("greedy_smollm2.json")[::4]]
    together = greedy(runner, prompts, 16)
    assert together == [greedy(runner, [prompt], 16)[0] for prompt in prompts]


def test_sequences_join_leave_and_prefill_in_parts(runner: PagedRunner, reference: Reference) -> None:
    """One step may hold a decoding sequence, a whole prompt, and a part of a long one that ends mid-block."""
    a, b = (case["prompt"] for case in reference("greedy_smollm2.json")[:2])
    long = [int(token) for token in np.random.default_rng(0).integers(20, 40000, 150)]
    (expected,) = runner.step([SequenceSlice(long, 0, range(10, 20))]).copy()
    runner.step([SequenceSlice(a, 0, [0, 1])])
    runner.step([SequenceSlice([30], len(a), [0, 1]), SequenceSlice(long[:70], 0, range(20, 30))])
    last = runner.step([SequenceSlice(b, 0, [2]), SequenceSlice(long[70:], 70, range(20, 30))])[1]
    assert np.abs(last - expected).max() < TIE


def test_exported_blocks_continue_in_another_runner(
    prepared: PreparedDecoder, runner: PagedRunner, reference: Reference
) -> None:
    """Prefill here, decode there: the bytes of a sequence's blocks are all that has to move."""
    prompt = reference("greedy_smollm2.json")[4]["prompt"]
    (expected,) = greedy(runner, [prompt])
    (blocks,) = tables(runner, [prompt])
    runner.step([SequenceSlice(prompt, 0, blocks)])
    used = -(-len(prompt) // runner.block_size)
    moved = [runner.read_block(block).tobytes() for block in blocks[:used]]
    other = PagedRunner(prepared.xml, 16)
    assert other.kv_layout == runner.kv_layout
    assert len(moved[0]) == other.block_nbytes
    for index, data in enumerate(moved):
        other.write_block(15 - index, data)
    table, output = [15 - index for index in range(len(blocks))], expected[:1]
    for step in range(STEPS - 1):
        output.append(int(other.step([SequenceSlice(output[-1:], len(prompt) + step, table)])[0].argmax()))
    assert output == expected


def test_blocks_are_copied_whole(runner: PagedRunner) -> None:
    data = np.random.default_rng(1).integers(0, 256, runner.block_nbytes, dtype=np.uint8)
    data[:] &= 0x3F  # no NaN or infinity for whoever uses the block next
    runner.write_block(5, data)
    runner.copy_block(5, 9)
    out = np.empty(runner.block_nbytes, np.uint8)
    assert runner.read_block(9, out) is out
    assert np.array_equal(out, data)


def test_warming_up_fits_the_smallest_cache_and_leaves_nothing(
    prepared: PreparedDecoder, runner: PagedRunner
) -> None:
    small = PagedRunner(prepared.xml, 1, threads=1)
    small.warm_up()
    prompt = [int(token) for token in np.random.default_rng(3).integers(20, 40000, small.block_size)]
    a, b = (r.step([SequenceSlice(prompt, 0, [0])])[0] for r in (runner, small))
    assert np.abs(a - b).max() < TIE


def test_layout_is_read_from_the_compiled_model(prepared: PreparedDecoder, runner: PagedRunner) -> None:
    config, layout = prepared.config, runner.kv_layout
    assert (runner.num_layers, runner.vocab_size) == (config.num_layers, config.vocab_size)
    assert layout.value_shape == (config.num_kv_heads, runner.block_size, config.head_dim)
    tokens = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    assert runner.block_nbytes == runner.block_size * tokens


SMALLER = [(name, None) for name in compute_precisions(ov.Core(), "CPU") if name != "f32"]


@pytest.mark.parametrize(("precision", "kv_precision"), [*SMALLER, ("f32", "u8"), ("f32", "f16")])
def test_smaller_precisions_stay_near(
    prepared: PreparedDecoder, runner: PagedRunner, precision: str, kv_precision: str | None
) -> None:
    """They change logits by about a tenth: enough to swap near ties, not to change what is likely."""
    small = PagedRunner(prepared.xml, 16, precision=precision, kv_precision=kv_precision, threads=1)
    assert small.block_nbytes < runner.block_nbytes
    if precision == "f16":  # OpenVINO 2026.4 computes NaN on the CPUs that list it: refused, and rightly so
        with pytest.raises(
            CapabilityMismatch, match=r"computes non-finite numbers with precision=f16 .* on CPU \(.+\); set"
        ):
            small.warm_up()
        assert np.isnan(logit_changes(runner, small)).all()
        assert "fp16" not in runner.supported_precisions
        return
    small.warm_up()
    assert 0 < logit_changes(runner, small).mean() < 0.3


def test_rounded_activations_stay_near(prepared: PreparedDecoder, runner: PagedRunner) -> None:
    """Where the CPU multiplies 8 bits by 8: elsewhere OpenVINO rounds none."""
    rounding = PagedRunner(prepared.xml, 16, dynamic_quantization=True, threads=1)
    assert rounding.kv_layout == runner.kv_layout
    changes = logit_changes(runner, rounding)
    assert changes.mean() < 0.3
    assert changes.max() > 1e-3 or not has_vnni()


def logit_changes(one: PagedRunner, other: PagedRunner) -> npt.NDArray[np.float32]:
    """How far apart the two put each logit after the same 200 tokens."""
    prompt = [int(token) for token in np.random.default_rng(2).integers(20, 40000, 200)]
    a, b = (runner.step([SequenceSlice(prompt, 0, range(8))])[0] for runner in (one, other))
    return np.abs(a - b)


def has_vnni() -> bool:
    return bool({"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text().split()))


@pytest.mark.parametrize(
    ("tokens", "past", "blocks", "says"),
    [
        ([], 0, [0], "at least one token"),
        ([1], -1, [0], "at least one token"),
        ([1] * 40, 0, [0], "a slice has 40 tokens after 0, and 1 blocks"),
        ([1, -5], 0, [0], "token id -5 does not exist"),
        ([49152], 0, [0], "token id 49152 does not exist, expected 0 to 49151"),
        ([1], 0, [128], "block id 128 does not exist"),
    ],
)
def test_out_of_bounds_ids_are_rejected(
    runner: PagedRunner, tokens: list[int], past: int, blocks: list[int], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        runner.step([SequenceSlice(tokens, past, blocks)])


def test_other_mistakes(runner: PagedRunner, prepared: PreparedDecoder) -> None:
    assert runner.step([]).shape == (0, runner.vocab_size)
    with pytest.raises(KVCorrupt, match="the KV block has 3 bytes"):
        runner.write_block(0, b"abc")
    with pytest.raises(InvalidRequest, match="block id 128"):
        runner.read_block(128)
    with pytest.raises(InvalidRequest, match="the KV cache has 0 blocks"):
        PagedRunner(prepared.xml, 0)
    with pytest.raises(InvalidRequest, match="expected at least one"):
        PagedRunner(prepared.xml, kv_cache_bytes=runner.block_nbytes - 1)
    with pytest.raises(UnsupportedFeature, match="device NPU7"):
        PagedRunner(prepared.xml, 1, device="NPU7")
