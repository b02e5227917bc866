"""langchain-openai by LangChain's standard tests for chat models and embeddings."""

from __future__ import annotations

from typing import Any

from common import EMBEDDING, LLM, URL, model_size
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """With ``has_tool_choice`` the suite forces calls; its agent loop leaves the choice to the model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Without a penalty a model of this size repeats itself until max_tokens.
        return {
            "model": LLM,
            "base_url": URL,
            "api_key": "none",
            "temperature": 0,
            "frequency_penalty": 0.6,
            "max_tokens": 200,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @model_size
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @model_size
    def test_json_mode(self, model: BaseChatModel) -> None:
        """JSON of any form: which keys it has is left to the prompt, and so to the model."""
        super().test_json_mode(model)


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": EMBEDDING, "base_url": URL, "api_key": "none", "check_embedding_ctx_length": False}
