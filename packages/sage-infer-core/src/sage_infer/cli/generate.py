"""``sage infer generate``"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.options import (
    Backend,
    BackendOptions,
    KVSchema,
    Model,
    QuantProfile,
    llm_settings,
    read_texts,
)
from sage_infer.cli.output import AsJson, loading, note, print_json

if TYPE_CHECKING:
    from sage_infer.contracts import InferenceBackend, TokenStream
    from sage_infer.schemas import Prompt, SamplingParams

__all__ = ["generate"]


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; - reads them from standard input.")
    ] = None,
    model: Model = None,
    backend: Backend = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Maximum answer length in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="Answers per prompt.")] = 1,
    logprobs: Annotated[int | None, typer.Option(help="Log probabilities of this many alternatives.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="Answer with JSON that matches this schema (a file).")
    ] = None,
    kv_schema: KVSchema = None,
    quant_profile: QuantProfile = None,
    options: BackendOptions = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with a model. The answer to a single prompt is streamed."""
    from sage_infer.schemas import GuidedDecoding, SamplingParams

    guided = None if json_schema is None else GuidedDecoding(json_schema=_load_schema(json_schema))
    params = SamplingParams(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, stop=tuple(stop or ()), n=n,
        max_tokens=max_tokens, logprobs=logprobs, guided=guided,
    )  # fmt: skip
    texts = read_texts(prompts, "prompt")
    name, engine, arguments = llm_settings(model, backend, kv_schema, quant_profile, options)
    asyncio.run(_generate(texts, params, name, engine, system, raw, arguments, as_json))


async def _generate(
    texts: list[str],
    params: SamplingParams,
    model: str,
    backend: str,
    system: str | None,
    raw: bool,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    from contextlib import AsyncExitStack

    from sage_infer.backends import open_backend

    async with AsyncExitStack() as stack:
        with loading(model, backend) as progress:
            engine = await stack.enter_async_context(
                open_backend(backend, model=model, serves="llm", on_progress=progress, **options)
            )
        prompts = [await as_chat_prompt(engine, text, system, raw) for text in texts]
        streams = await engine.generate(prompts, params)
        if as_json:
            results = await asyncio.gather(*map(_collect, streams))
            head = {"model": model, "backend": backend}
            print_json(
                [{**head, "prompt": text, **result} for text, result in zip(texts, results, strict=True)]
            )
        elif len(streams) == 1 and params.n == 1:
            await _print_stream(streams[0])
        else:
            await _print_all(texts, streams)


async def as_chat_prompt(engine: InferenceBackend, text: str, system: str | None, raw: bool) -> str | Prompt:
    """The text itself, or a user message if the model has a chat template."""
    if raw or not engine.get_capability().supports("chat"):
        if system is not None:
            from sage_infer.errors import InvalidRequest

            raise InvalidRequest("--system requires a chat model and no --raw")
        return text
    messages = [{"role": "system", "content": system}] if system is not None else []
    return await engine.render_chat([*messages, {"role": "user", "content": text}])


async def _print_stream(stream: TokenStream) -> None:
    async with stream:
        async for delta in stream:
            print(delta.text, end="", flush=True)
    print()
    if sys.stderr.isatty() and stream.usage is not None and stream.timing is not None:
        rate = stream.usage.completion_tokens / max(stream.timing.total_s, 1e-9)
        note(
            f"[{stream.usage.prompt_tokens} + {stream.usage.completion_tokens} tokens, {rate:.0f} tokens/s, "
            f"first after {stream.timing.ttft_s:.2f} s, {stream.finish_reason}]"
        )


async def _print_all(texts: list[str], streams: list[TokenStream]) -> None:
    results = await asyncio.gather(*map(_collect, streams))
    for text, result in zip(texts, results, strict=True):
        for choice in result["choices"]:
            print(f"{text}\n  → {choice['text'].strip()}\n")


async def _collect(stream: TokenStream) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    async with stream:
        async for delta in stream:
            choice = choices.setdefault(
                delta.index, {"index": delta.index, "text": "", "token_ids": [], "finish_reason": None}
            )
            choice["text"] += delta.text
            choice["token_ids"] += delta.token_ids
            choice["finish_reason"] = delta.finish_reason or choice["finish_reason"]
            for item in delta.logprobs or ():
                best = [{"token_id": i, "text": t, "logprob": p} for i, t, p in item.alternatives]
                choice.setdefault("logprobs", []).append(
                    {
                        "token_id": item.token_id,
                        "text": item.text,
                        "logprob": item.logprob,
                        "alternatives": best,
                    }
                )
    from attrs import asdict

    return {
        "request_id": stream.request_id,
        "choices": [choices[index] for index in sorted(choices)],
        "usage": asdict(stream.usage) if stream.usage else None,
        "timing": asdict(stream.timing) if stream.timing else None,
    }


def _load_schema(path: Path) -> dict[str, Any]:
    import json

    from sage_infer.cli.options import read_file
    from sage_infer.errors import InvalidRequest

    try:
        schema = json.loads(read_file(path))
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path} must hold a JSON Schema object, got {type(schema).__name__}")
    return schema
