"""Embedders, hybrids, stores, transports and detectors with one mistake each, as test classes of their kits.

``FOUND_BY`` pairs each class with a test that must fail on it.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import attrs
from kit_reference_parts import (
    ReferenceDetector,
    ReferenceEmbedder,
    ReferenceHybrid,
    ReferenceStore,
    ReferenceTransport,
)
from sage_infer.errors import InvalidRequest, SageInferError
from sage_infer.schemas import (
    AcceleratorDescriptor,
    EmbeddingResult,
    LinkProfile,
    MemoryTierSpec,
    ModelDescriptor,
    Usage,
)
from sage_infer_testing import (
    EmbeddingBackendContract,
    HardwareDetectorContract,
    HybridBackendContract,
    KVStoreContract,
)
from test_other_kits import FileTransport

SUITES: dict[str, type] = {}
FOUND_BY: list[tuple[str, str]] = []
COUNTER = itertools.count(1)


def suite(kit: type, factory: str, *tests: str, **settings: Any) -> Any:
    """Make a test class of ``kit`` from a broken implementation, which the tests must fail."""

    def register(broken: Any) -> Any:
        made = {factory: lambda self, *args: broken(*(_store_args(self, *args) if args else ()))}
        name = f"Test{broken.__name__}"
        SUITES[name] = type(kit)(name, (kit,), {"settle_s": 0.2, "timeout_s": 5.0, **settings, **made})
        FOUND_BY.extend((name, test) for test in tests)
        return broken

    return register


def _store_args(kit: Any, capacity: int) -> tuple[Any, ...]:
    return kit.model_id, kit.kv_schema, capacity


def embedder(*tests: str, **settings: Any) -> Any:
    return suite(EmbeddingBackendContract, "make_backend", *tests, **settings)


def hybrid(*tests: str) -> Any:
    spare = ModelDescriptor(model_id="spare", model_type="llm", model_path="/")
    giant = ModelDescriptor(model_id="giant", model_type="llm", model_path="/", memory_gb=100.0)
    settings = {"llm": "talker", "embedder": "embedder", "spare": spare, "too_large": giant}
    return suite(HybridBackendContract, "make_backend", *tests, **settings)


def store(*tests: str) -> Any:
    return suite(KVStoreContract, "open_store", *tests)


def transport(*tests: str) -> Any:
    return suite(FileTransport, "make_transport", *tests)


def detector(*tests: str) -> Any:
    return suite(HardwareDetectorContract, "make_detector", *tests, hardware=("toy",))


# --- embedding


@embedder("test_batch_keeps_the_order", "test_concurrent_calls_do_not_mix")
class SortsTheBatch(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, **options: Any) -> EmbeddingResult:
        words = sorted(texts, key=len) if len(texts) > 1 else [f"{texts[0]} {next(COUNTER)}"]
        return await super().embed_batch(words, **options)


@embedder("test_embedding_is_deterministic", "test_embed_gives_one_vector")
class Random(ReferenceEmbedder):
    def get_embedding_dim(self) -> int:
        return 32

    async def embed_batch(self, texts: Any, **options: Any) -> EmbeddingResult:
        return await super().embed_batch([f"{text} {next(COUNTER)}" for text in texts], **options)


@embedder("test_vectors_have_length_one", normalized=False)
class Normalizes(ReferenceEmbedder):
    pass


@embedder("test_meaning_decides")
class Meaningless(ReferenceEmbedder):
    def words(self, *args: Any) -> list[str]:
        return [" ".join(super().words(*args))]


@embedder("test_token_ids_may_be_given")
class AddsTokens(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, **options: Any) -> EmbeddingResult:
        result = await super().embed_batch(texts, **options)
        return attrs.evolve(result, usage=Usage(prompt_tokens=result.usage.prompt_tokens + 2))


@embedder("test_no_texts_give_no_vectors", "test_empty_text_is_refused")
class NeedsTexts(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return super().words(index, text or "empty", truncate)

    async def embed_batch(self, texts: Any, **options: Any) -> EmbeddingResult:
        return await super().embed_batch(texts or ["nothing"], **options)


@embedder("test_text_over_the_limit_is_refused")
class AlwaysCuts(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return super().words(index, text, "end")


@embedder("test_text_over_the_limit_is_refused")
class VagueAboutLimits(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        try:
            return super().words(index, text, truncate)
        except InvalidRequest:
            raise InvalidRequest(f"text {index} is no good") from None


@embedder("test_text_over_the_limit_is_cut")
class CutsTooLate(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return [
            word for part in text.split() for word in super(CutsTooLate, self).words(index, part, truncate)
        ]


@embedder("test_claims_what_it_does", "test_limits_are_positive")
class ClaimsNothing(ReferenceEmbedder):
    def get_capability(self) -> Any:
        return attrs.evolve(super().get_capability(), features=(), max_sequence_length=7)


@embedder("test_refuses_to_rerank")
class ReranksAnyway(ReferenceEmbedder):
    def get_capability(self) -> Any:
        return attrs.evolve(super().get_capability(), features=("embed",))


@embedder("test_rerank_orders_by_relevance", "test_top_n_limits_the_hits")
class WorstFirst(ReferenceEmbedder):
    async def rerank(self, query: str, documents: Any, *, top_n: int | None = None) -> Any:
        result = await super().rerank(query, documents)
        return attrs.evolve(result, hits=result.hits[::-1])


@embedder("test_work_after_close_is_refused")
class WorksAfterClose(ReferenceEmbedder):
    def words(self, *args: Any) -> list[str]:
        self.state = "ok"
        return super().words(*args)


# --- hybrid


@hybrid("test_lists_its_models")
class ListsTwice(ReferenceHybrid):
    def list_models(self) -> Any:
        return super().list_models() * 2


@hybrid("test_capability_lists_the_loaded_models", "test_loads_and_unloads")
class ListsRegistered(ReferenceHybrid):
    def get_hybrid_capability(self) -> Any:
        spare = ModelDescriptor(model_id="spare", model_type="llm", model_path="/")
        capability = super().get_hybrid_capability()
        loaded = {m.model_id: m for m in (*capability.loaded_models, spare)}
        return attrs.evolve(capability, loaded_models=tuple(loaded.values()))


@hybrid("test_unknown_models_are_not_found")
class AnyModel(ReferenceHybrid):
    def find(self, model: Any, kind: str) -> Any:
        return super().find(model if model in self.backends else None, kind or "llm")


@hybrid("test_there_is_a_default_model")
class NoDefault(ReferenceHybrid):
    def find(self, model: Any, kind: str) -> Any:
        return super().find(model or "nothing", kind)


@hybrid("test_generates_with_a_named_model", "test_chats")
class CutsOutputs(ReferenceHybrid):
    async def generate(self, prompts: Any, params: Any, **options: Any) -> Any:
        return await super().generate(prompts, attrs.evolve(params, max_tokens=1), **options)


@hybrid("test_embeds_in_order")
class EmbedsBackwards(ReferenceHybrid):
    async def embed(self, texts: Any, **options: Any) -> Any:
        return await super().embed(texts[::-1], **options)


@hybrid("test_models_work_side_by_side")
class SharesState(ReferenceHybrid):
    async def embed(self, texts: Any, **options: Any) -> Any:
        extra = " more" if self.stats().running else ""
        return await super().embed([text + extra for text in texts], **options)


@hybrid("test_a_late_embedding_is_cancelled")
class IsNeverLate(ReferenceHybrid):
    async def embed(self, texts: Any, *, deadline: Any = None, **options: Any) -> Any:
        return await super().embed(texts, **options)


@hybrid("test_giving_up_frees_the_request")
class ForgetsAborts(ReferenceHybrid):
    async def abort(self, request_id: str) -> None:
        self.stats = lambda: attrs.evolve(ReferenceHybrid.stats(self), running=1)  # type: ignore[method-assign]


@hybrid("test_unloading_lets_requests_finish")
class UnloadsAtOnce(ReferenceHybrid):
    async def unload_model(self, model_id: str) -> None:
        await self.find(model_id, "").close()
        del self.backends[model_id]


@hybrid("test_a_model_that_cannot_fit_is_refused")
class EndlessMemory(ReferenceHybrid):
    async def load_model(self, model: ModelDescriptor) -> None:
        await super().load_model(attrs.evolve(model, memory_gb=None))


@hybrid("test_work_after_close_is_refused")
class NeverCloses(ReferenceHybrid):
    async def close(self) -> None:
        """Goes on."""


# --- KV stores


@store("test_put_copies")
class KeepsViews(ReferenceStore):
    def put(self, keys: Any, blocks: Any) -> int:
        count = super().put(keys, blocks)
        self.blocks.update(zip(keys, blocks, strict=True))
        return count


@store("test_blocks_come_back", "test_random_operations_agree_with_a_model")
class ReturnsOtherBytes(ReferenceStore):
    def get(self, keys: Any, out: Any) -> list[bool]:
        found = super().get(keys, out)
        for buffer in out:
            buffer[0] ^= 1
        return found


@store("test_put_again_changes_nothing")
class CountsPuts(ReferenceStore):
    puts = 0

    def put(self, keys: Any, blocks: Any) -> int:
        self.puts += len(keys)
        return super().put(keys, blocks)

    def stats(self) -> Any:
        return attrs.evolve(super().stats(), blocks=self.puts)


@store("test_match_walks_the_prefix", "test_random_operations_agree_with_a_model")
class JumpsGaps(ReferenceStore):
    def match(self, tokens: Any) -> int:
        from sage_infer.contracts import block_keys

        keys = block_keys(self.model_id, self.schema, tokens)
        return self.schema.page_size * sum(key in self.blocks for key in keys)


@store("test_look_ups_are_counted")
class CountsNoLookUps(ReferenceStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), hits=0, misses=0)


@store("test_wrong_buffers_are_refused")
class ChecksNothing(ReferenceStore):
    def check(self, keys: Any, buffers: Any) -> None:
        """Nothing."""


@store("test_least_recently_used_makes_room", "test_evict_drops_the_oldest")
class DropsTheNewest(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        self.blocks = type(self.blocks)(reversed(self.blocks.items()))
        gone = super().evict(count, keep)
        self.blocks = type(self.blocks)(reversed(self.blocks.items()))
        return gone


@store(
    "test_pins_hold", "test_a_store_full_of_pins_takes_nothing", "test_random_operations_agree_with_a_model"
)
class IgnoresPins(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        pins, self.pins = self.pins, type(self.pins)()
        gone = super().evict(count, keep)
        self.pins = pins
        return gone


@store("test_stats_add_up")
class CountsNoBytes(ReferenceStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), bytes_used=0)


@store("test_close_twice_is_safe")
class ClosesTheStoreOnce(ReferenceStore):
    def close(self) -> None:
        del self.lock


@store("test_threads_do_not_disturb_each_other")
class LosesPins(ReferenceStore):
    def unpin(self, keys: Any) -> None:
        super().unpin(keys[:1])


@store("test_has_the_shape_of_its_protocol")
class OtherSchema(ReferenceStore):
    @property
    def schema(self) -> Any:
        return attrs.evolve(self._schema, format_id="mine")


# --- transports


@transport("test_knows_what_it_reaches", "test_a_plan_out_of_reach_is_refused")
class ReachesEverything(ReferenceTransport):
    def can_reach(self, source: Any, target: Any) -> bool:
        return True


@transport("test_a_damaged_chunk_fails_its_step_alone")
class Unverified(ReferenceTransport):
    def verify(self, step: Any, data: bytes) -> None:
        """Trusts."""


@transport("test_moves_every_chunk")
class ReportsByPriority(ReferenceTransport):
    async def execute(self, plan: Any) -> Any:
        return attrs.evolve(await super().execute(plan), moved_bytes=1)


@transport("test_a_missing_source_fails_its_step_alone")
class StopsAtTheFirstError(ReferenceTransport):
    def move(self, step: Any) -> int:
        try:
            return super().move(step)
        except OSError as error:
            raise SageInferError(str(error)) from error


@transport("test_cancelling_leaves_no_partial_chunk")
class WritesInPlace(ReferenceTransport):
    async def execute(self, plan: Any) -> Any:
        for step in plan.steps:
            Path(step.target.uri.removeprefix("file://")).write_bytes(b"par")  # noqa: ASYNC240 - a small local file
        return await super().execute(plan)


@transport("test_a_plan_can_be_carried_out_again")
class MovesOnce(ReferenceTransport):
    def move(self, step: Any) -> int:
        if Path(step.target.uri.removeprefix("file://")).exists():
            raise OSError("is there already")
        return super().move(step)


@transport("test_plans_run_side_by_side")
class OnePlanAtATime(ReferenceTransport):
    plan_id = ""

    async def execute(self, plan: Any) -> Any:
        self.plan_id = plan.plan_id
        return attrs.evolve(await super().execute(plan), plan_id=self.plan_id)


@transport("test_close_twice_is_safe")
class ClosesTheTransportOnce(ReferenceTransport):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@transport("test_an_empty_plan_is_done")
class WantsSteps(ReferenceTransport):
    async def execute(self, plan: Any) -> Any:
        if not plan.steps:
            raise InvalidRequest("no steps")
        return await super().execute(plan)


# --- detectors


def device(index: int, backend: str = "toy") -> AcceleratorDescriptor:
    return AcceleratorDescriptor(hardware_backend=backend, vendor="Toy", model="T1", index=index)


@detector("test_detects_the_same_twice", "test_works_in_any_thread")
class ReportsTheMoment(ReferenceDetector):
    def memory(self) -> Any:
        return (MemoryTierSpec(tier="dram", name="numa:0", usable_bytes=next(COUNTER)),)


@detector("test_says_where_it_knows_it_from")
class NoSources(ReferenceDetector):
    def detect(self) -> Any:
        return attrs.evolve(super().detect(), sources=())


@detector("test_reports_its_own_hardware", "test_links_join_what_is_there")
class Disorderly(ReferenceDetector):
    def detect(self) -> Any:
        links = (LinkProfile(source="toy:0", target="toy:7", kind="pcie"),)
        return attrs.evolve(super().detect(), accelerators=(device(1), device(0)), links=links)


@detector("test_reports_its_own_hardware")
class ReportsOthers(ReferenceDetector):
    def detect(self) -> Any:
        return attrs.evolve(super().detect(), accelerators=(device(0, "other"),))


@detector("test_missing_tools_are_no_crash")
class NeedsItsTool(ReferenceDetector):
    def detect(self) -> Any:
        import shutil

        if shutil.which("sh") is None:
            raise FileNotFoundError("toy-smi")
        return super().detect()


@detector("test_leaves_no_trace")
class SetsVariables(ReferenceDetector):
    def detect(self) -> Any:
        os.environ["TOY_VISIBLE_DEVICES"] = str(next(COUNTER))
        return super().detect()


@detector("test_stays_on_this_machine")
class AsksTheCloud(ReferenceDetector):
    def detect(self) -> Any:
        try:
            with socket.socket() as connection:
                connection.connect(("127.0.0.1", 9))
        except OSError:
            pass
        return super().detect()


@detector("test_loads_no_engine")
class ImportsAnEngine(ReferenceDetector):
    def detect(self) -> Any:
        sys.modules.setdefault("cupy", types.ModuleType("cupy"))
        return super().detect()


@detector("test_profile_survives_json", "test_has_the_shape_of_its_protocol")
class AsyncDetector(ReferenceDetector):
    async def detect(self) -> Any:  # type: ignore[override]
        return super().detect()


@detector("test_measuring_only_adds_figures")
class MeasuresWhatItIs(ReferenceDetector):
    def measure(self, profile: Any, progress: Any) -> Any:
        return attrs.evolve(profile, memory_tiers=())


@detector("test_measuring_only_adds_figures")
class MeasuresAlone(ReferenceDetector):
    def measure(self) -> Any:
        return self.detect()


globals().update(SUITES)
