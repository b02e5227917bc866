"""The kit passes on the reference engine: with everything claimed, and with next to nothing claimed."""

from kit_reference.llm import ReferenceLLM
from sage_infer.schemas import QuantizationProfile
from sage_infer_testing import InferenceBackendContract


class TestEverythingClaimed(InferenceBackendContract):
    max_queue = 24
    quant_profile = QuantizationProfile(profile_id="full", weight_bits=32)
    template_variables = {"tone": "dry"}  # noqa: RUF012 - as the kit declares it
    tool_answer = ('<call>{"name": "clock", "arguments": {"zone": "UTC"}}</call>', "clock", {"zone": "UTC"})

    def make_backend(self) -> ReferenceLLM:
        return ReferenceLLM()


class TestLittleClaimed(InferenceBackendContract):
    prompt_token_ids = (97, 52, 72, 69)
    prompts = ("The", "Once", "Two words", "1, 2")

    def make_backend(self) -> ReferenceLLM:
        return ReferenceLLM(features=("streaming",))
