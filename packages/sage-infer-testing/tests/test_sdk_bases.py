"""What a subclass of each base inherits: the contract, by its kit, and an end of every mistake of the subclass."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.backends import create_backend
from sage_infer.contracts import ProgressReport
from sage_infer.errors import (
    ConfigError,
    EngineDead,
    InvalidRequest,
    ModelFileError,
    Overloaded,
    RequestCancelled,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    KVLocation,
    ModelDescriptor,
    Prompt,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
    TokenDelta,
    TransportPlan,
    TransportSettings,
)
from sage_infer.sdk import (
    BackendReplica,
    BaseEmbeddingBackend,
    BaseExecutor,
    BaseInferenceBackend,
    BaseKVStore,
    BaseReplica,
    BaseTransport,
    Completion,
    choose_token,
    copy_chunk,
    file_path,
)
from sage_infer_testing import (
    EmbeddingBackendContract,
    ExecutorContract,
    InferenceBackendContract,
    KVStoreContract,
    TransportContract,
)

END, VOCABULARY, LIMIT = 0, 128, 200
MODEL = ModelDescriptor(model_id="letters", model_type="llm", model_path="/")


class Letters(BaseInferenceBackend):
    """Likes the letters that follow the last one in the alphabet of ASCII."""

    name, features = "letters", ("streaming", "chat", "tokenize", "seed", "parallel_sampling", "min_p")
    max_sequence_length, vocabulary = LIMIT, VOCABULARY

    def load(self, report: ProgressReport) -> None:
        report("counting letters", 0.5)
        self.unloaded = 0

    def unload(self) -> None:
        self.unloaded += 1

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return [min(ord(letter), 127) for letter in prompt.text or ""]

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def render(self, messages: Sequence[Any], *, add_generation_prompt: bool) -> Prompt:
        if any(not message.get("content") for message in messages):
            raise InvalidRequest("a message has no content")
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return Prompt(text="".join(lines) + "assistant:" * add_generation_prompt)

    async def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        outputs = [
            Completion(params, max_tokens=max_tokens, decode=chr, eos_token_ids=[END], index=index)
            for index in range(params.n)
        ]
        seed = secrets.randbits(63) if params.seed is None else params.seed
        draws = [random.Random(f"{seed}/{index}") for index in range(params.n)]
        while unfinished := [output for output in outputs if output.finish_reason is None]:
            for output in unfinished:
                last = [*token_ids, *output.token_ids][-1]
                near = {32 + (last + step) % 95: 1.0 / (step + 1) for step in range(1, 20)}
                yield output.push(choose_token(near, params, draws[output._index]))


class TestLetters(InferenceBackendContract):
    max_queue = 64

    def make_backend(self) -> Letters:
        return Letters(MODEL)


class Pairs(BaseEmbeddingBackend):
    """A vector counts the pairs of letters in a text, hashed."""

    name, dim, max_sequence_length = "pairs", 512, 500

    def encode(self, text: Any) -> Sequence[int]:
        return [min(ord(letter), 127) for letter in text] if isinstance(text, str) else text

    def vectors(self, batch: Sequence[Sequence[int]]) -> Iterable[Iterable[float]]:
        return [self.vector([32, *tokens, 32]) for tokens in batch]

    def vector(self, tokens: Sequence[int]) -> list[float]:
        counts = [0.0] * self.dim
        for triple in zip(tokens, tokens[1:], tokens[2:], strict=False):
            counts[zlib.crc32(str(triple).encode()) % self.dim] += 1
        return counts


class TestPairs(EmbeddingBackendContract):
    def make_backend(self) -> Pairs:
        return Pairs(MODEL)


class Files(BaseKVStore[Path]):
    """Blocks in files of a folder."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(**more)
        self.folder, self.numbers = folder, itertools.count()

    def write(self, key: bytes, block: memoryview) -> Path:
        place = self.folder / str(next(self.numbers))
        place.write_bytes(block)
        return place

    def read(self, place: Path, out: memoryview) -> None:
        out[:] = place.read_bytes()

    def erase(self, place: Path) -> None:
        place.unlink()


class TestFiles(KVStoreContract):
    examples = 20

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folders = (tmp_path / str(number) for number in itertools.count())

    def open_store(self, capacity_blocks: int) -> Files:
        folder = next(self.folders)
        folder.mkdir()
        return Files(folder, schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks)


class Copies(BaseTransport):
    schemes, attempts = {"file"}, 2

    async def move(self, step: Any) -> None:
        await asyncio.to_thread(copy_chunk, step.chunk, file_path(step.source), file_path(step.target))


class TestCopies(TransportContract):
    settings = TransportSettings(chunk_bytes=4096, max_in_flight=2)

    def make_transport(self) -> Copies:
        return Copies(self.settings)

    def place(self, data: bytes, name: str, folder: Path) -> KVLocation:
        (folder / name).write_bytes(data)
        return self.target(len(data), name, folder)

    def target(self, nbytes: int, name: str, folder: Path) -> KVLocation:
        return KVLocation(tier="ssd", uri=(folder / name).as_uri())

    def contents(self, location: KVLocation) -> bytes | None:
        path = file_path(location)
        return path.read_bytes() if path.exists() else None

    async def test_steps_are_tried_again_and_counted(self, tmp_path: Path) -> None:
        class Flaky(Copies):
            failures = 1

            async def move(self, step: Any) -> None:
                self.failures -= 1
                if self.failures >= 0:
                    raise ConnectionError("lost")
                await super().move(step)

        step = self.step(10_000, "c0", tmp_path)
        report = await Flaky(self.settings).execute(TransportPlan.from_steps("p", (step,)))
        assert (report.statuses, report.retries) == (("done",), 1)
        gone = self.step(64, "c1", tmp_path, source=self.target(64, "nowhere", tmp_path))
        report = await Flaky(self.settings).execute(TransportPlan.from_steps("p", (gone,)))
        assert (report.statuses, report.retries) == (("failed",), 1)
        assert "nowhere" in report.errors[0]
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "a temporary file is left"

    async def test_an_error_of_the_contract_is_not_tried_again(self, tmp_path: Path) -> None:
        class Refuses(Copies):
            async def move(self, step: Any) -> None:
                raise UnsupportedFeature("not this one")

        step = self.step(64, "c0", tmp_path)
        report = await Refuses(self.settings).execute(TransportPlan.from_steps("p", (step,)))
        assert (report.statuses, report.retries) == (("failed",), 0)


class InProcess(BaseExecutor):
    honours = ("environment",)

    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        if spec.backend != "letters":
            create_backend(spec.backend, model=spec.model)
        backend = Letters(spec.model)
        await backend.start()
        return BackendReplica(spec, backend)


class TestInProcess(ExecutorContract):
    unsupported: ClassVar[Any] = {"server": "some.module:serve", "gpus": 1.0, "group": "here"}

    def make_executor(self) -> InProcess:
        return InProcess()

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        return ReplicaSpec(replica_id=replica_id, backend="letters", model=MODEL, environment={"A": "B"})


# --- what kits do not see


def run(
    main: Callable[[Letters], Coroutine[Any, Any, None]], kind: type[Letters] = Letters, **options: Any
) -> Letters:
    """``main`` with a started backend, which is closed at its end."""

    async def started() -> Letters:
        backend = kind(MODEL, **options)
        await backend.start()
        try:
            await main(backend)
        finally:
            await backend.close()
        return backend

    return asyncio.run(started())


def test_a_mistake_of_the_subclass_ends_the_request() -> None:
    class Falls(Letters):
        async def complete(
            self, token_ids: Any, params: Any, *, max_tokens: int
        ) -> AsyncIterator[TokenDelta]:
            yield TokenDelta("a", (65,))
            if params.max_tokens == 1:
                raise KeyError("lost")

    async def main(backend: Letters) -> None:
        for params, message in (
            (SamplingParams(max_tokens=1), "KeyError: 'lost'"),
            (SamplingParams(), "finish_reason"),
        ):
            (stream,) = await backend.generate("x", params)
            with pytest.raises(EngineDead, match=message):
                [delta async for delta in stream]
        assert len(backend.requests) == 0
        assert backend.stats().finished == 2

    run(main, Falls)


def test_an_error_of_the_contract_reaches_the_reader_as_it_is() -> None:
    class Refuses(Letters):
        async def complete(
            self, token_ids: Any, params: Any, *, max_tokens: int
        ) -> AsyncIterator[TokenDelta]:
            raise UnsupportedFeature("not today")
            yield TokenDelta("", ())

    async def main(backend: Letters) -> None:
        (stream,) = await backend.generate("x", SamplingParams())
        with pytest.raises(UnsupportedFeature, match="not today"):
            [delta async for delta in stream]

    run(main, Refuses)


def test_the_model_is_freed_after_the_last_request() -> None:
    class Watches(Letters):
        def unload(self) -> None:
            super().unload()
            assert self.figures.running == 0

    async def main(backend: Letters) -> None:
        endless = SamplingParams(ignore_eos=True)
        streams = await backend.generate(["a"] * 12, endless)
        await anext(aiter(streams[0]))
        await backend.close()
        with pytest.raises(RequestCancelled) as caught:
            [delta async for delta in streams[11]]
        assert caught.value.by == "close"

    assert run(main, Watches).unloaded == 1


def test_closed_while_it_loads() -> None:
    async def main() -> None:
        loop, loading, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        class Slow(Letters):
            def load(self, report: ProgressReport) -> None:
                super().load(report)
                loop.call_soon_threadsafe(loading.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        backend = Slow(MODEL)
        starting = asyncio.ensure_future(backend.start())
        await loading.wait()
        assert (await backend.health()).status == "starting"
        await backend.close()
        go_on.set()
        with pytest.raises(EngineDead, match="closed while it started"):
            await starting
        assert backend.unloaded == 1
        with pytest.raises(EngineDead):
            await backend.start()

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded() -> None:
    class Broken(Letters):
        def load(self, report: ProgressReport) -> None:
            raise ModelFileError("no letters in it")

    async def main() -> None:
        backend = Broken(MODEL)
        with pytest.raises(ModelFileError):
            await backend.start()
        assert not (await backend.health()).ok
        await backend.close()

    asyncio.run(main())


def test_parts_of_a_request_and_its_limits() -> None:
    async def main(backend: Letters) -> None:
        endless = SamplingParams(ignore_eos=True)
        streams = await backend.generate(["a", "b"], endless, request_id="r")
        assert [stream.request_id for stream in streams] == ["r/0", "r/1"]
        for taken in ("r", "r/0"):
            with pytest.raises(InvalidRequest, match="in use"):
                await backend.generate("a", endless, request_id=taken)
        with pytest.raises(Overloaded) as caught:
            await backend.generate(["a"] * 3, endless)
        assert caught.value.retry_after > 0
        with pytest.raises(InvalidRequest, match="split it"):
            await backend.generate(["a"] * 5, endless)
        await backend.abort("r/1")
        await backend.abort("r")
        await backend.abort("r")
        assert len(backend.requests) == 0
        (again,) = await backend.generate("a", endless, request_id="r")
        again.cancel()

    run(main, max_queue=4)
    with pytest.raises(ConfigError, match="max_queue of letters must be a positive integer, got 0"):
        Letters(MODEL, max_queue=0)


@pytest.mark.parametrize("deadline", [1e-9, 0.01])
def test_deadlines(deadline: float) -> None:
    class Hangs(Letters):
        async def complete(
            self, token_ids: Any, params: Any, *, max_tokens: int
        ) -> AsyncIterator[TokenDelta]:
            await asyncio.Event().wait()
            yield TokenDelta("", ())

    async def main(backend: Letters) -> None:
        late = RequestOptions(deadline=deadline)
        (stream,) = await backend.generate("a", SamplingParams(), options=late)
        with pytest.raises(RequestCancelled) as caught:
            [delta async for delta in stream]
        assert caught.value.by == "deadline"
        assert len(backend.requests) == 0

    run(main, Hangs)


def test_vectors_of_another_number_are_the_subclasses_mistake() -> None:
    class Short(Pairs):
        def vectors(self, batch: Any) -> Iterable[Iterable[float]]:
            return list(super().vectors(batch))[:1]

    async def main() -> None:
        backend = Short(MODEL)
        await backend.start()
        with pytest.raises(RuntimeError, match="512 numbers for 2 texts of 512"):
            await backend.embed(["a", "b"])
        with pytest.raises(InvalidRequest, match="batch_size"):
            await backend.embed_batch(["a"], 0)
        with pytest.raises(UnsupportedFeature):
            await backend.rerank("a", ["b"])
        await backend.close()

    asyncio.run(main())


def test_a_replica_that_does_not_start_in_time() -> None:
    class Slow(InProcess):
        async def launch(self, spec: ReplicaSpec) -> BaseReplica:
            await asyncio.Event().wait()
            raise AssertionError

    async def main() -> None:
        executor = Slow()
        spec = ReplicaSpec(replica_id="r", backend="letters", model=MODEL, start_timeout_s=0.01)
        with pytest.raises(EngineDead, match=r"'r' did not start within 0\.01 s"):
            await executor.start(spec)
        assert not executor.replicas

    asyncio.run(main())


NOT_OVERRIDDEN: list[tuple[type, Callable[[Any], Any]]] = [
    (BaseInferenceBackend, lambda bare: bare.encode(None)),
    (BaseInferenceBackend, lambda bare: bare.complete([], None, max_tokens=1)),
    (BaseInferenceBackend, lambda bare: bare.decode_tokens([])),
    (BaseInferenceBackend, lambda bare: bare.render([], add_generation_prompt=True)),
    (BaseEmbeddingBackend, lambda bare: bare.encode("")),
    (BaseEmbeddingBackend, lambda bare: bare.vectors([])),
    (BaseKVStore, lambda bare: bare.write(b"", None)),
    (BaseKVStore, lambda bare: bare.read(None, None)),
    (BaseTransport, lambda bare: asyncio.run(bare.move(None))),
    (BaseExecutor, lambda bare: asyncio.run(bare.launch(None))),
    (BaseReplica, lambda bare: asyncio.run(bare.destroy())),
]


@pytest.mark.parametrize(("kind", "call"), NOT_OVERRIDDEN)
def test_what_is_not_overridden_is_named(kind: type, call: Callable[[Any], Any]) -> None:
    bare = type("Bare", (kind,), {})
    with pytest.raises(NotImplementedError, match="Bare must override"):
        call(bare.__new__(bare))
