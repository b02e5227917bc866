"""The contract kit on the embedded engine and its encoder, with the sample models and a toy reranker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sage_infer.contracts import KVFormatCodec
from sage_infer.schemas import KVCacheSchema, QuantizationProfile
from sage_infer_openvino.kv_format import OpenVINOInt8Codec
from sage_infer_testing import (
    EmbeddingBackendContract,
    InferenceBackendContract,
    KVFormatCodecContract,
    PluginContract,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "sage-infer-openvino" / "tests"))

from encoder_toy import DOCUMENTS, QUERY, RERANKERS, write_encoder


class TestPlugin(PluginContract):
    module = "sage_infer_openvino.plugin"


class TestOpenVINO(InferenceBackendContract):
    backend_name = "openvino"
    model = "smollm2-135m"
    timeout_s = 900.0  # on a busy machine
    max_queue = 48
    quant_profile = QuantizationProfile(
        profile_id="w8", weight_bits=8, activation_bits=32, kv_bits_prefill=8, kv_bits_decode=8
    )
    options = {"max_queue": 48, "max_batch_size": 8, "kv_cache_gb": 0.15}  # noqa: RUF012 - as the kit declares it


class TestOpenVINOEmbedding(EmbeddingBackendContract):
    backend_name = "openvino-embedding"
    model = "minilm"
    timeout_s = 900.0
    normalized = True


class TestOpenVINOReranking(EmbeddingBackendContract):
    """Its weights are random: what is most relevant to it is known from sentence-transformers."""

    serves = "reranker"
    timeout_s = 900.0
    backend_name = "openvino-embedding"
    query = QUERY
    documents = DOCUMENTS

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def reranker(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("reranker") / "toy"
        cls.model = str(write_encoder(folder, **RERANKERS["distilbert"]))


class TestKVFormat(KVFormatCodecContract):
    kv_schema = KVCacheSchema(
        dtype="int8",
        page_size=32,
        num_layers=2,
        num_heads=3,
        head_dim=64,
        scale_dtype="fp32",
        scale_granularity="channel",
        value_scale_granularity="token_head",
        zero_points=True,
        format_id="openvino-2026.4",
    )

    def make_codec(self) -> KVFormatCodec:
        return OpenVINOInt8Codec()
