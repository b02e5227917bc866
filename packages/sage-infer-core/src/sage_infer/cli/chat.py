"""``sage infer chat``"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_infer.cli.options import Backend, BackendOptions, KVSchema, Model, QuantProfile, llm_settings
from sage_infer.cli.output import loading, note

if TYPE_CHECKING:
    from sage_infer.contracts import ChatMessage, InferenceBackend
    from sage_infer.schemas import SamplingParams

__all__ = ["chat"]

_HELP = "/reset clears the conversation, /exit (or Ctrl-D) quits, Ctrl-C stops an answer"


def chat(
    model: Model = None,
    backend: Backend = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum answer length in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    kv_schema: KVSchema = None,
    quant_profile: QuantProfile = None,
    options: BackendOptions = None,
) -> None:
    """Chat with a model; answers are streamed."""
    from sage_infer.schemas import SamplingParams

    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
    name, engine, arguments = llm_settings(model, backend, kv_schema, quant_profile, options)
    asyncio.run(_chat(name, engine, system, params, arguments))


async def _chat(
    model: str, backend: str, system: str | None, params: SamplingParams, options: dict[str, Any]
) -> None:
    from contextlib import AsyncExitStack

    from sage_infer.backends import open_backend
    from sage_infer.errors import InvalidRequest

    async with AsyncExitStack() as stack:
        with loading(model, backend) as progress:
            engine = await stack.enter_async_context(
                open_backend(backend, model=model, serves="llm", on_progress=progress, **options)
            )
        interactive = sys.stdin.isatty()
        if interactive:
            note(f"{model} on {backend}. {_HELP}.")
        opening: list[ChatMessage] = [{"role": "system", "content": system}] if system is not None else []
        messages = list(opening)
        while (line := await asyncio.to_thread(_read_line, interactive)) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                messages = list(opening)
                continue
            if not line:
                continue
            if line.startswith("/"):
                note(f"unknown command {line.split()[0]}; {_HELP}")
                continue
            question: ChatMessage = {"role": "user", "content": line}
            try:
                answer = await _answer(engine, [*messages, question], params)
            except InvalidRequest as error:
                # Usually the conversation exceeds the model's limit; it is kept, so that nothing is lost.
                note(f"error: {error.message}; /reset starts a new conversation")
                continue
            messages += [question, {"role": "assistant", "content": answer}]


async def _answer(engine: InferenceBackend, messages: list[ChatMessage], params: SamplingParams) -> str:
    import signal

    (stream,) = await engine.generate(await engine.render_chat(messages), params)
    loop = asyncio.get_running_loop()
    parts: list[str] = []
    with suppress(NotImplementedError):  # Windows: Ctrl-C ends the program there
        loop.add_signal_handler(signal.SIGINT, stream.cancel)
    from sage_infer.errors import RequestCancelled

    try:
        async with stream:
            async for delta in stream:
                parts.append(delta.text)
                print(delta.text, end="", flush=True)
    except RequestCancelled:
        note(" [stopped]")
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)
    print()
    return "".join(parts)


def _read_line(interactive: bool) -> str | None:
    """A line without its line end; None at the end of input."""
    if interactive:
        import readline  # noqa: F401 - importing it gives input() history and editing

        try:
            return input("> ").strip()
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None
