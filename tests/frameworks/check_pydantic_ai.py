"""pydantic-ai: text, streams, typed output by a tool and by a schema, and tools."""

from __future__ import annotations

from common import LLM, MAX_TOKENS, URL, model_size
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS = ModelSettings(temperature=0.0, max_tokens=MAX_TOKENS)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    is_capital: bool


def agent(**more: object) -> Agent:
    return Agent(
        OpenAIChatModel(LLM, provider=OpenAIProvider(base_url=URL, api_key="none")),
        instructions="Answer briefly.", model_settings=SETTINGS, **more,
    )  # fmt: skip


async def test_run() -> None:
    result = await agent().run("What is the capital of France?")
    assert result.output
    assert result.usage.output_tokens > 0


async def test_stream() -> None:
    async with agent().run_stream("What is the capital of France?") as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert len(parts) > 2


async def test_several_turns() -> None:
    first = await agent().run("Say hello.")
    assert (await agent().run("Again.", message_history=first.all_messages())).output


async def test_output_by_a_tool() -> None:
    assert isinstance((await agent(output_type=ToolOutput(City)).run("Describe Paris.")).output, City)


async def test_output_by_one_of_two_tools() -> None:
    class Failure(BaseModel):
        reason: str = Field(max_length=20)

    output = (await agent(output_type=[City, Failure]).run("Describe Paris.")).output
    assert isinstance(output, City | Failure)


async def test_output_by_a_schema() -> None:
    assert isinstance((await agent(output_type=NativeOutput(City)).run("Describe Paris.")).output, City)


@model_size
async def test_output_by_a_prompt() -> None:
    """JSON mode with the schema in the prompt; a model that writes other keys is asked again."""
    assert isinstance(
        (await agent(output_type=PromptedOutput(City), retries=3).run("Describe Paris.")).output, City
    )


@model_size
async def test_a_tool_that_may_be_called() -> None:
    called = []
    with_tool = agent()

    @with_tool.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return "rain"

    await with_tool.run("What is the weather in Paris? Use the tool.")
    assert called
