"""instructor: typed answers by forced tools and by JSON Schema, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterable

import instructor
import pytest
from common import LLM, MAX_TOKENS, URL
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

ASK = [{"role": "user", "content": "Extract: Jason is 25 years old."}]
OPTIONS = {"model": LLM, "messages": ASK, "temperature": 0, "max_tokens": MAX_TOKENS}
MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


class User(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class Family(BaseModel):
    members: list[User] = Field(min_length=1, max_length=2)


@pytest.mark.parametrize("mode", MODES)
def test_create(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=URL, api_key="none"), mode=mode)
    user = client.create(response_model=User, **OPTIONS)
    assert isinstance(user, User)
    assert isinstance(client.create(response_model=Family, **{**OPTIONS, "max_tokens": 200}), Family)


@pytest.mark.parametrize("mode", MODES)
async def test_create_async(mode: instructor.Mode) -> None:
    client = instructor.from_openai(AsyncOpenAI(base_url=URL, api_key="none"), mode=mode)
    assert isinstance(await client.create(response_model=User, **OPTIONS), User)


@pytest.mark.parametrize("mode", MODES)
def test_partial(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=URL, api_key="none"), mode=mode)
    parts = list(client.create_partial(response_model=User, **OPTIONS))
    assert len(parts) > 1
    assert parts[-1].age is not None


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS])
def test_iterable(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=URL, api_key="none"), mode=mode)
    found: Iterable[User] = client.create_iterable(response_model=User, **{**OPTIONS, "max_tokens": 200})
    assert all(isinstance(user, User) for user in found)
