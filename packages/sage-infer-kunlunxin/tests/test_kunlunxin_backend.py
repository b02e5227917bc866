"""Kunlunxin as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_kunlunxin.plugin"
    stack: ClassVar[Mapping[str, str]] = {"vllm": "0.15.1", "vllm-kunlun": "0.15.1"}
    device = "cuda"
    environment: ClassVar[Mapping[str, str]] = {"XPU_VISIBLE_DEVICES": "2,3"}
    mismatched: ClassVar[Mapping[str, str]] = {"vllm": "0.15.0"}
    checkpoints: ClassVar[Mapping[str, tuple[Mapping[str, Any], int, int]]] = {
        "gptq": (
            {
                "config.json": {
                    "model_type": "llama",
                    "quantization_config": {
                        "quant_method": "gptq",
                        "bits": 4,
                        "group_size": 128,
                        "desc_act": False,
                        "sym": True,
                    },
                }
            },
            4,
            16,
        ),
    }

    def test_launches_are_those_of_the_vendors_guides(
        self, adapter: Any, platform: Any, tiny: ModelDescriptor
    ) -> None:
        def arguments(**options: Any) -> dict[str, Any]:
            found: dict[str, Any] = adapter.engine_arguments(
                adapter.VLLMSettings(**options), platform, tiny, "folder", device="cuda", runner="generate"
            )
            return found

        usual = {"block_size": 128, "enable_chunked_prefill": False, "enable_prefix_caching": False}
        assert usual.items() <= arguments().items()
        assert arguments(prefix_caching=True)["enable_prefix_caching"] is True
        with pytest.raises(CapabilityMismatch, match="kunlunxin does not support fp8 KV; available: none"):
            self._backend()(tiny, kv_schema={"preset": "fp8"})

    @staticmethod
    def _backend() -> Any:
        from sage_infer_kunlunxin.backend import KunlunxinBackend

        return KunlunxinBackend
