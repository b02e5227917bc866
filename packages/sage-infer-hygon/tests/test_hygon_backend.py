"""Hygon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import ModelDescriptor, QuantizationProfile
from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_hygon.plugin"
    stack: ClassVar[Mapping[str, str]] = {"vllm": "0.18.1+das.dtk2604", "torch": "2.10.0+das.opt1.dtk2604"}
    device = "cuda"
    environment: ClassVar[Mapping[str, str]] = {"HIP_VISIBLE_DEVICES": "2,3"}
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

    def test_another_build_of_the_same_release_is_named(
        self, adapter: Any, platform: Any, specs: Any, tmp_path: Path
    ) -> None:
        versions = {**self.stack, "vllm": "0.18.1"}
        for reason in self._listed(specs, tmp_path, versions).values():
            assert "vllm 0.18.1 is installed, expected the vendor's build (+das)" in reason

    def test_nvidias_kernels_are_not_promised(self, backends: Any, tiny: ModelDescriptor) -> None:
        online = QuantizationProfile(profile_id="p", weight_bits=8, activation_bits=8)
        with pytest.raises(CapabilityMismatch, match="the checkpoint is not quantized"):
            backends[0](tiny).load_quant_profile(online)
