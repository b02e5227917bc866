"""Generation on a real vLLM: equal to vLLM without the adapter, with every supported parameter."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from sage_infer.contracts import TokenStream
from sage_infer.errors import InvalidRequest, ModelNotFound, Overloaded, UnsupportedFeature
from sage_infer.schemas import (
    GuidedDecoding,
    MediaItem,
    Prompt,
    RequestOptions,
    SamplingParams,
    TokenDelta,
)
from vllm_toys import have_vllm

pytestmark = pytest.mark.skipif(
    not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
)

PROMPTS = [
    f"{start} {number}" for number in range(16) for start in ("Count from", "The year", "I am", "Chapter")
]


@pytest.fixture(autouse=True)
def _started(live: Any) -> None:
    """The engine runs before a test's coroutine asks for it in the loop that would have to start it."""
    assert live.backend is not None


async def read(stream: TokenStream) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def text_of(backend: Any, prompt: Any, params: SamplingParams, **more: Any) -> str:
    (stream,) = await backend.generate(prompt, params, **more)
    return "".join(delta.text for delta in await read(stream))


# --- equality with vLLM itself


def plain(deltas: list[TokenDelta], stream: TokenStream) -> dict[str, Any]:
    usage = stream.usage
    assert usage is not None
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return {
        "tokens": [token for delta in deltas for token in delta.token_ids],
        "text": "".join(delta.text for delta in deltas),
        "logprobs": [(entry.token_id, entry.logprob) for entry in logprobs],
        "alternatives": [tuple((i, value) for i, _, value in entry.alternatives) for entry in logprobs],
        "reason": stream.finish_reason,
        "usage": (usage.prompt_tokens, usage.completion_tokens),
    }


async def through_vllm(backend: Any, ids: list[int], request_id: str, **params: Any) -> dict[str, Any]:
    running = backend._running
    compat, llm = running.compat, running.engine.llm
    sampling = compat.SamplingParams(output_kind=compat.RequestOutputKind.DELTA, **params)
    found: dict[str, Any] = {"tokens": [], "text": "", "logprobs": [], "alternatives": []}
    async for output in llm.generate(compat.tokens_input(ids), sampling, request_id):
        (completion,) = output.outputs
        found["tokens"] += completion.token_ids
        found["text"] += completion.text
        for token, entries in zip(completion.token_ids, completion.logprobs, strict=True):
            found["logprobs"].append((token, entries[token].logprob))
            best = sorted((e.rank, i, e.logprob) for i, e in entries.items() if e.rank <= params["logprobs"])
            found["alternatives"].append(tuple((i, value) for _, i, value in best))
        found["reason"] = completion.finish_reason
    return {**found, "usage": (len(ids), len(found["tokens"]))}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9, "seed": 7}])
def test_the_adapter_returns_vllms_output(live: Any, sampling: dict[str, Any]) -> None:
    """64 prompts at once through the adapter, then the same through ``AsyncLLM`` in the same engine."""

    async def main() -> None:
        backend = live.backend
        ids = [backend._running.tokenizer.encode(prompt) for prompt in PROMPTS]
        params = SamplingParams(max_tokens=12, logprobs=2, **sampling)
        streams = await backend.generate(PROMPTS, params)
        ours = [plain(await read(stream), stream) for stream in streams]
        theirs = await asyncio.gather(
            *[
                through_vllm(backend, prompt, f"raw-{i}", max_tokens=12, logprobs=2, **sampling)
                for i, prompt in enumerate(ids)
            ]
        )
        assert len(ours) == 64
        for prompt, mine, other in zip(PROMPTS, ours, theirs, strict=True):
            assert mine == other, prompt

    live.run(main())


# --- what it says of itself


def test_the_capability_is_read_from_the_engine(live: Any) -> None:
    capability = live.backend.get_capability()
    config = live.backend._running.engine.config
    assert capability.backend_name == "vllm"
    assert capability.hardware_backend == "cpu"
    assert capability.max_batch_size == config.scheduler_config.max_num_seqs == 64
    assert capability.max_sequence_length == 512
    assert set(capability.supported_precisions) == {"fp32", "bf16", "fp16"}
    schema = capability.kv_schema
    assert (schema.dtype, schema.num_layers, schema.num_heads, schema.head_dim) == ("fp32", 30, 3, 64)
    assert schema.page_size == config.cache_config.block_size
    assert schema.format_id.endswith(f"-cpu_attn-{isa_of(schema.page_size)}")
    assert schema == live.backend.get_kv_schema()
    assert capability.kv_cache_capacity_gb == pytest.approx(0.75, rel=0.02)
    assert {"chat", "lora", "prefix_caching", "guided_json", "priority"} <= set(capability.features)
    if schema.key_axis_order is not None:
        assert {"prefill_decode", "kv_export", "kv_import"} <= set(capability.features)
    assert "sleep" not in capability.features


def isa_of(page_size: int) -> str:
    """The instruction set that vLLM's kernels use here, whatever this version calls its function's arguments."""
    import torch
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    arguments = (torch.float32, page_size, 64)
    return str(
        _get_attn_isa(*arguments[: len(inspect.signature(_get_attn_isa).parameters)])
    )  # 0.13 takes two


def test_steps_and_batches_are_those_of_vllms_own_server(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sage_infer_vllm import compat
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    server = UsageContext.OPENAI_API_SERVER
    defaults = {server: 640}, {server: 96}
    monkeypatch.setattr(AsyncEngineArgs, "get_batch_defaults", lambda *_: defaults)
    model = live.backend._running.engine.config.model_config.model
    scheduling = compat.engine_config({"model": model, "max_model_len": 512}).scheduler_config
    assert (scheduling.max_num_batched_tokens, scheduling.max_num_seqs) == (640, 96)


@pytest.mark.parametrize(("eager", "logprobs"), [(True, None), (False, 1)])
def test_the_kernel_of_log_probabilities_is_compiled_at_the_start(
    live: Any, eager: bool, logprobs: int | None
) -> None:
    from sage_infer_vllm import compat

    llm, asked = live.backend._running.engine.llm, []

    def generate(prompt: Any, params: Any, request_id: str) -> Any:
        asked.append(params.logprobs)
        return llm.generate(prompt, params, request_id)

    config = SimpleNamespace(model_config=SimpleNamespace(enforce_eager=eager, max_logprobs=20))
    live.run(compat.warm_up(SimpleNamespace(vllm_config=config, generate=generate)))
    assert asked == [logprobs]


def test_the_start_reports_its_stages(live: Any) -> None:
    assert live.backend is not None
    names = [stage for stage, _ in live.stages]
    order = [
        "importing vLLM",
        "starting the engine",
        "loading weights",
        "allocating the KV cache",
        "warming up",
        "ready",
    ]
    assert [name for name in names if name in order][-1] == "ready"
    assert all(name in names for name in order)
    last = len(names) - 1 - names[::-1].index("importing vLLM")
    shares = [share for _, share in live.stages[last:]]
    assert shares == sorted(shares)


def test_a_cpu_cannot_sleep(live: Any) -> None:
    with pytest.raises(UnsupportedFeature, match="cannot sleep"):
        live.run(live.backend.sleep())
    with pytest.raises(UnsupportedFeature, match="does not support sleep"):
        live.run(live.backend.wake())


def test_statistics_come_from_the_engine(live: Any) -> None:
    async def main() -> None:
        backend = live.backend
        before = backend.stats()
        assert before.kv_blocks_free == before.kv_blocks_total > 0
        (stream,) = await backend.generate("Once upon a time", SamplingParams(max_tokens=40, ignore_eos=True))
        seen = [backend.stats() async for _ in stream]
        assert max(stats.running for stats in seen) == 1
        assert min(stats.kv_blocks_free for stats in seen) < before.kv_blocks_total
        after = backend.stats()
        assert after.output_tokens - before.output_tokens == 40
        assert after.finished == before.finished + 1
        assert after.extensions["output_tokens_per_s"] > 0
        assert after.kv_blocks_free == after.kv_blocks_total

    live.run(main())


# --- what a request may ask for


def test_a_chat_is_answered(live: Any) -> None:
    backend = live.backend
    content = [{"type": "text", "text": "What is the capital of France?"}]
    prompt = live.run(backend.render_chat([{"role": "user", "content": content}]))
    answer = live.run(text_of(backend, prompt, SamplingParams(temperature=0, max_tokens=16)))
    assert "Paris" in answer


def test_tool_calls_are_parsed_and_the_template_gets_the_tools(live: Any) -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    text = 'Let me look.<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>'
    answer = live.run(live.backend.parse_tool_calls(text, tools=tools))
    assert answer.content == "Let me look."
    (call,) = answer.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("clock", {"zone": "UTC"})
    broken = "<tool_call>{not JSON</tool_call>"
    assert live.run(live.backend.parse_tool_calls(broken)).content == broken
    assert live.run(live.backend.render_chat([{"role": "user", "content": "hi"}], tools=tools)).text
    with pytest.raises(UnsupportedFeature, match=r"vLLM has no tool parser 'nobody'; available: .*hermes"):
        live.backend._running.compat.tool_parser("nobody", live.backend._running.tokenizer)


def test_an_adapter_changes_the_output_and_an_unknown_one_is_refused(live: Any) -> None:
    async def main() -> None:
        backend, greedy = live.backend, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        base = await text_of(backend, PROMPTS[0], greedy)
        noise = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, adapter="noise")
        assert await text_of(backend, PROMPTS[0], noise) != base
        assert await text_of(backend, PROMPTS[0], greedy) == base
        with pytest.raises(ModelNotFound, match="no adapter 'other'; available: noise"):
            await backend.generate("a", SamplingParams(adapter="other"))

    live.run(main())


def test_guided_decoding(live: Any) -> None:
    async def guided(**constraint: Any) -> str:
        params = SamplingParams(temperature=1.0, seed=3, max_tokens=60, guided=GuidedDecoding(**constraint))
        return await text_of(live.backend, "Answer:", params)

    async def main() -> None:
        properties = {"name": {"enum": ["Ada", "Alan"]}, "born": {"type": "boolean"}}
        schema = {
            "type": "object",
            "properties": properties,
            "required": ["name", "born"],
            "additionalProperties": False,
        }
        assert set(json.loads(await guided(json_schema=schema))) == {"name", "born"}
        assert re.fullmatch("[0-9]{3}", await guided(regex="[0-9]{3}"))
        assert await guided(choice=("red", "green")) in ("red", "green")
        assert await guided(grammar='root ::= "yes" | "no"') in ("yes", "no")
        with pytest.raises(InvalidRequest, match="vLLM rejects the request"):
            await guided(regex="[0-9")
        assert len(live.backend._running.requests) == 0  # nothing is left of what was refused

    live.run(main())


def test_only_requests_of_equal_salt_share_a_prefix(live: Any) -> None:
    async def cached_tokens(prompt: list[int], salt: str) -> int:
        options = RequestOptions(cache_salt=salt)
        (stream,) = await live.backend.generate(prompt, SamplingParams(max_tokens=1), options=options)
        await read(stream)
        return int(stream.usage.cached_tokens)

    async def main() -> None:
        prompt = [1000 + token for token in range(300)]
        assert await cached_tokens(prompt, "a") == 0
        assert await cached_tokens(prompt, "a") >= 128
        assert await cached_tokens(prompt, "b") == 0
        assert await cached_tokens(prompt, "") == 0

    live.run(main())


def test_options_that_are_not_claimed_are_refused_by_name(live: Any) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    media = Prompt(text="x", media=(MediaItem(kind="image", uri="data:image/gif;base64,AA"),))

    async def main() -> None:
        for options, name in ((RequestOptions(tenant="t"), "tenant"), (RequestOptions(trace=trace), "trace")):
            with pytest.raises(UnsupportedFeature, match=rf"vllm does not support options\.{name}"):
                await live.backend.generate("a", SamplingParams(), options=options)
        with pytest.raises(UnsupportedFeature, match="media of a prompt"):
            await live.backend.generate(media, SamplingParams())
        with pytest.raises(UnsupportedFeature, match="media of a prompt"):
            await live.backend.tokenize(media)

    live.run(main())


def test_reports_say_how_much_is_under_way(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(max_tokens=20, ignore_eos=True)
        identity, idle = backend.describe(), backend.report()
        assert (identity.instance_id, identity.generation) == (idle.instance_id, idle.generation)
        assert identity.key_space == key_space_of_files(live)
        assert {"vllm", "torch"} == set(identity.versions)
        (stream,) = await backend.generate([5] * 100, params)
        begun = backend.report()
        assert (begun.waiting_prompt_tokens, begun.running_context_tokens) == (100, 0)
        contexts = [backend.report().running_context_tokens async for _ in stream]
        grown = [tokens for tokens in contexts if tokens]  # none once the request has ended
        assert grown[0] >= 101
        assert grown == sorted(grown)
        after = backend.report()
        assert (after.waiting_prompt_tokens, after.running_context_tokens, after.oldest_wait_s) == (0, 0, 0)
        assert after.steps - idle.steps >= 20
        assert after.step_s > 0

    live.run(main())


def key_space_of_files(live: Any) -> str:
    """Computed from the model's files and the schema alone, as another machine would."""
    from sage_infer.contracts import key_space
    from sage_infer_vllm.models.prepare import loadable_folder
    from sage_infer_vllm.models.weights import weight_ids

    folder = loadable_folder(live.model.model_path, cache_dir=None, progress=lambda stage, share: None)
    return key_space(f"{weight_ids(folder).content} torch.float32 None", live.backend.get_kv_schema())


def test_ten_times_more_requests_than_the_queue_takes(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        results = await asyncio.gather(
            *[backend.generate(PROMPTS[i % 64], params) for i in range(640)], return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Overloaded)]
        streams = [stream for result in results if isinstance(result, list) for stream in result]
        assert len(refused) + len(streams) == 640
        assert len(refused) >= 640 - 2 * 64
        assert all(error.retry_after > 0 for error in refused)
        for stream in streams:
            assert sum(len(delta.token_ids) for delta in await read(stream)) == 2
        await text_of(backend, "and on", params)

    live.run(main())


def test_a_prompt_over_the_limit(live: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"context length is 512 tokens .* 600 tokens"):
        live.run(live.backend.generate([5] * 600, SamplingParams()))
