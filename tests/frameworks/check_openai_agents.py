"""openai-agents: runs, streams, tools and typed output."""

from __future__ import annotations

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import LLM, MAX_TOKENS, URL, model_size
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
called: list[str] = []


class City(BaseModel):
    name: str
    is_capital: bool


@function_tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    called.append(city)
    return f"It rains in {city}."


def agent(**more: object) -> Agent:
    settings = {"temperature": 0.0, "max_tokens": MAX_TOKENS, **more.pop("settings", {})}
    model = OpenAIChatCompletionsModel(LLM, AsyncOpenAI(base_url=URL, api_key="none"))
    return Agent(
        name="assistant",
        instructions="Answer briefly.",
        model=model,
        model_settings=ModelSettings(**settings),
        **more,
    )


async def test_run() -> None:
    result = await Runner.run(agent(), "What is the capital of France?")
    assert result.final_output
    assert result.context_wrapper.usage.output_tokens > 0


async def test_stream() -> None:
    result = Runner.run_streamed(agent(settings={"include_usage": True}), "What is the capital of France?")
    kinds = [event.type async for event in result.stream_events()]
    assert kinds.count("raw_response_event") > 3
    assert result.final_output


async def test_several_turns() -> None:
    first = await Runner.run(agent(), "Say hello.")
    second = await Runner.run(agent(), [*first.to_input_list(), {"role": "user", "content": "Again."}])
    assert second.final_output


async def test_typed_output() -> None:
    result = await Runner.run(agent(output_type=City), "Describe Paris.")
    assert isinstance(result.final_output, City)


async def test_a_tool_that_must_be_called() -> None:
    """The loop: a forced call, the tool's result, and an answer with it."""
    called.clear()
    result = await Runner.run(
        agent(tools=[weather], settings={"tool_choice": "required"}), "Weather in Paris?"
    )
    assert len(called) == 1
    assert result.final_output


async def test_a_tool_that_must_be_called_streamed() -> None:
    called.clear()
    result = Runner.run_streamed(
        agent(tools=[weather], settings={"tool_choice": "weather"}), "Weather in Paris?"
    )
    names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert {"tool_called", "tool_output"} <= set(names)
    assert len(called) == 1


@model_size
async def test_a_tool_that_may_be_called() -> None:
    called.clear()
    await Runner.run(agent(tools=[weather]), "What is the weather in Paris? Use the tool.")
    assert called
