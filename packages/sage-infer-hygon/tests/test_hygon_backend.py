"""Hygon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import ClassVar

from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_hygon.plugin"
    stack: ClassVar[Mapping[str, str]] = {"vllm": "0.18.1+das.dtk2604", "torch": "2.10.0+das.opt1.dtk2604"}
    device = "cuda"
    environment: ClassVar[Mapping[str, str]] = {"HIP_VISIBLE_DEVICES": "2,3"}
