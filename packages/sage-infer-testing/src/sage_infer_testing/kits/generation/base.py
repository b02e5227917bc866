"""Base of the generation tests: prompts, lengths, and reading of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sage_infer.contracts import InferenceBackend
from sage_infer.schemas import QuantizationProfile, SamplingParams

from sage_infer_testing.kits.options import OptionTests
from sage_infer_testing.kits.reporting import ReportTests
from sage_infer_testing.reading import Output, generate_one, greedy

__all__ = ["GenerationSuite"]


class GenerationSuite(OptionTests, ReportTests, kit=True):
    """Base of the generation tests, with the settings for vendors.

    Attributes:
        prompts: at least four distinct texts of a few words each.
        max_output: number of tokens that most tests generate; at least 8.
        exact_batch_invariance: whether each token of greedy output is the same alone and in a batch. Set it to False if
            the engine's kernels round differently by batch size; then only first tokens are compared.
        prompt_token_ids: token ids of ``prompts[0]`` from the model's tokenizer; required only if the backend does not
            claim ``prefill_decode``.
        max_queue: maximum number of running and waiting requests before ``Overloaded``; None if there is no limit, or
            if it is too high for a test.
        tool_answer: an answer with one tool call in the model's format, the function's name and its arguments; required
            if the backend claims ``tool_calls``.
        template_variables: variables that the model's chat template uses, if ``template_variables`` is claimed.
        quant_profile: a profile that the backend supports for the model, if it claims ``quant_profile``.
        grammar: a guided-decoding grammar in the backend's dialect whose only outputs are "yes" and "no".
    """

    protocol: ClassVar[type] = InferenceBackend
    prompts: ClassVar[Sequence[str]] = (
        "The capital of France is",
        "Once upon a time, in a small village,",
        "def add(a, b):\n    return",
        "Water boils at a temperature of",
        "My favourite colour is blue because",
        "1, 2, 3, 4,",
    )
    max_output: ClassVar[int] = 16
    exact_batch_invariance: ClassVar[bool] = True
    prompt_token_ids: ClassVar[Sequence[int] | None] = None
    max_queue: ClassVar[int | None] = None
    tool_answer: ClassVar[tuple[str, str, Mapping[str, Any]] | None] = None
    template_variables: ClassVar[Mapping[str, Any]] = {"enable_thinking": False}
    quant_profile: ClassVar[QuantizationProfile | None] = None
    grammar: ClassVar[str] = 'root ::= "yes" | "no"'

    async def ask(self, backend: Any, *, options: Any = None) -> None:
        """Generate two tokens for the first prompt."""
        await generate_one(backend, self.prompts[0], greedy(2), options=options)

    async def greedy_output(self, backend: Any, prompt: Any = None, **more: Any) -> Output:
        """Return greedy output of ``max_output`` tokens for a prompt, by default the first one."""
        params = greedy(more.pop("max_tokens", self.max_output), **more)
        return await generate_one(backend, self.prompts[0] if prompt is None else prompt, params)

    async def first_prompt_ids(self, backend: Any) -> tuple[int, ...]:
        """Return the token ids of ``prompts[0]`` if they are known, or other valid token ids."""
        if backend.get_capability().supports("prefill_decode"):
            result = await backend.prefill(
                self.prompts[0], request_id=(request_id := self.new_id()), params=greedy(1)
            )
            await backend.abort(request_id)
            return tuple(result.states[0].prompt_token_ids)
        return tuple(self.prompt_token_ids or (await self.greedy_output(backend)).token_ids)

    async def long_prompt(self, backend: Any, length: int) -> tuple[int, ...]:
        """Return ``length`` valid token ids."""
        ids = await self.first_prompt_ids(backend)
        return (ids * (length // len(ids) + 1))[:length]

    def endless(self, backend: Any) -> SamplingParams:
        """Return sampling parameters that continue to the sequence limit unless stopped."""
        return SamplingParams(temperature=0.0, ignore_eos=True)

    def same(self, one: Output, other: Output, what: str) -> None:
        """Fail unless two outputs are equal, or start with the same token without ``exact_batch_invariance``."""
        __tracebackhide__ = True
        length = None if self.exact_batch_invariance else 1
        assert one.token_ids[:length] == other.token_ids[:length], (
            f"{what}: {one.token_ids} {one.text!r} against {other.token_ids} {other.text!r}"
        )
        assert length or one.text == other.text, f"{what}: {one.text!r} against {other.text!r}"
