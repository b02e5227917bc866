"""A model without OpenVINO: its next token depends on all tokens that lie in the sequence's blocks.

So a block that is shared, freed or overwritten wrongly shows in the output, and an engine of this costs nothing.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sage_infer.compat import timeout, wait_for
from sage_infer.contracts import TokenStream
from sage_infer.schemas import ModelDescriptor, RequestOptions, SamplingParams, TokenDelta
from sage_infer_openvino import backend as backend_module
from sage_infer_openvino import loading
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.engine.paged_runner import KVLayout, SequenceSlice
from sage_infer_openvino.models.detokenizer import _LETTER_TO_BYTE
from sage_infer_openvino.models.tokenizer import TextTokenizer, TokenizerMeta
from sage_infer_openvino.settings import DecoderSettings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
EOS = 256
VOCABULARY = 257
BLOCK = 4
MODEL = ModelDescriptor(model_id="toy", model_type="llm", model_path="/toy")


class ToyRunner:
    """What the engine needs of a ``PagedRunner``. Steps wait for ``gate``; ``entered`` counts those that found it
    closed.

    With a ``failure`` a step raises it, once ``good_steps`` have been run. ``before_step`` is called in the engine's
    thread before each step but the first one.
    """

    block_size = BLOCK
    vocab_size = VOCABULARY
    num_layers = 1
    supported_precisions = ("fp32",)
    block_nbytes = BLOCK * 8
    kv_layout = KVLayout((1, BLOCK, 1), (1, BLOCK, 1), "f32", "f32", "toy")

    def __init__(self, num_blocks: int = 64) -> None:
        self.num_blocks = num_blocks
        self.kv = np.full((num_blocks, BLOCK), -1, np.int64)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.steps: list[list[tuple[int, int]]] = []
        self.failure: BaseException | None = None
        self.good_steps = 0
        self.before_step: Callable[[], object] = lambda: None

    def step(self, batch: Sequence[SequenceSlice]) -> npt.NDArray[np.float32]:
        if not self.gate.is_set():
            self.entered.release()
        assert self.gate.wait(300), "the test forgot to open the gate"
        if self.failure is not None and len(self.steps) >= self.good_steps:
            raise self.failure
        if self.steps:
            self.before_step()
        self.steps.append([(len(part.token_ids), part.past_len) for part in batch])
        for part in batch:
            for position, token in enumerate(part.token_ids, part.past_len):
                self.kv[part.block_ids[position // BLOCK], position % BLOCK] = token
        return np.stack([toy_logits(self._context(part)) for part in batch])

    def _context(self, part: SequenceSlice) -> list[int]:
        length = part.past_len + len(part.token_ids)
        return self.kv[list(part.block_ids)].reshape(-1)[:length].tolist()

    def read_block(self, block: int, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        out = np.empty(self.block_nbytes, np.uint8) if out is None else out
        out[:] = self.kv[block].view(np.uint8)
        return out

    def write_block(self, block: int, data: memoryview) -> None:
        self.kv[block] = np.frombuffer(data, np.int64)


def toy_logits(context: Sequence[int]) -> npt.NDArray[np.float32]:
    """EOS is unlikely, so that outputs end where the tests say."""
    seed = zlib.crc32(np.asarray(context, np.int64).tobytes())
    logits = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
    logits[EOS] = -20
    return logits


def toy_greedy(prompt: Sequence[int], count: int) -> list[int]:
    """What greedy decoding must give, computed without an engine."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(toy_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def toy_tokenizer() -> TextTokenizer:
    """A token a byte, and an end."""
    tokenizer = Tokenizer(models.BPE(vocab=dict(_LETTER_TO_BYTE), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return TextTokenizer(tokenizer, TokenizerMeta(eos_token_ids=(EOS,)))


class Toy:
    """A started ``OpenVINOBackend`` on a ``ToyRunner``. ``async with Toy(...) as toy``."""

    def __init__(
        self, num_blocks: int = 64, *, limit: int = 200, model: ModelDescriptor = MODEL, **options: Any
    ):
        self.runner = ToyRunner(num_blocks)
        self.backend = OpenVINOBackend(model, **{"step_tokens": 16, "max_batch_size": 8, **options})
        self.limit = limit

    async def __aenter__(self) -> Toy:
        def load(
            model: ModelDescriptor, settings: DecoderSettings, *, instance_id: str, report: Any
        ) -> loading.LoadedDecoder:
            return loading.assemble(
                self.runner,  # type: ignore[arg-type]  # has what is used of it
                toy_tokenizer(),
                model_id=model.model_id,
                fingerprint="toy-weights",
                weights_id="toy-source",
                instance_id=instance_id,
                max_sequence_length=min(self.limit, self.runner.num_blocks * BLOCK),
            )

        original, backend_module.load_model = backend_module.load_model, load
        try:
            await self.backend.start()
        finally:
            backend_module.load_model = original
        return self

    async def __aexit__(self, *_: object) -> None:
        self.runner.gate.set()
        await self.backend.close()

    async def generate(
        self, prompt: Any, params: SamplingParams, *, request_id: str | None = None, **options: Any
    ) -> TokenStream:
        (stream,) = await self.backend.generate(
            prompt, params, request_id=request_id, options=RequestOptions(**options)
        )
        return stream

    async def in_step(self) -> None:
        """Wait until the engine is inside a step, with the gate closed."""
        assert await asyncio.to_thread(self.runner.entered.acquire, timeout=300)

    async def idle(self, free: int | None = None) -> None:
        """Wait until nothing is open, and ``free`` blocks (all by default) are free."""
        wanted = self.runner.num_blocks if free is None else free
        await eventually(lambda: _is_idle(self.backend, wanted))


def _is_idle(backend: OpenVINOBackend, free: int) -> bool:
    stats = backend.stats()
    return not stats.running and not stats.waiting and stats.kv_blocks_free == free


async def eventually(condition: Any, within_s: float = 300.0) -> None:
    """Wait for what must come soon; fail if it does not."""
    async with timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the engine knows nothing of events
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, T], timeout: float = 600.0) -> T:
    async def limited() -> T:
        return await wait_for(main, timeout)

    return asyncio.run(limited())


async def deltas(stream: TokenStream) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def tokens(stream: TokenStream, index: int = 0) -> list[int]:
    return [token for delta in await deltas(stream) if delta.index == index for token in delta.token_ids]


def greedy(max_tokens: int | None = None, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **more})


def descriptor(path: Path, name: str, **more: Any) -> ModelDescriptor:
    kind = "embedding" if name == "minilm" else "llm"
    return ModelDescriptor(**{"model_id": name, "model_type": kind, "model_path": str(path), **more})
