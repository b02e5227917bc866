"""Unclaimed features are refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, MediaItem, Prompt, QuantizationProfile, SamplingParams
from sage_infer.sdk import FEATURE_OF

from sage_infer_testing.features import unless_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.kits.options import refused_by_name
from sage_infer_testing.reading import generate_one, greedy

__all__ = ["RefusalTests"]

_VALUES: Mapping[str, Any] = {
    "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 1, "n": 2,
    "logprobs": 1, "adapter": "some-adapter",
}  # fmt: skip
_PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@attrs.frozen(kw_only=True)
class UnheardParams(SamplingParams):
    """Sampling parameters of a later version, with a field that is unknown to all current backends."""

    unheard_of: float = 0.0


class RefusalTests(GenerationSuite, kit=True):
    """Tests of unclaimed features."""

    def by_claim(self, backend: Any, *, claimed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and parameters for each field whose feature the backend claims, or does not claim."""
        guided = {
            "json_schema": {"type": "object"}, "regex": "[0-9]+", "grammar": self.grammar, "choice": ("yes", "no"),
        }  # fmt: skip
        for table, values in ((FEATURE_OF[SamplingParams], _VALUES), (FEATURE_OF[GuidedDecoding], guided)):
            for name, feature in table.items():
                if feature is None or bool(backend.get_capability().supports(feature)) is not claimed:
                    continue
                value: Any = values[name]
                yield name, {"guided": GuidedDecoding(**{name: value})} if values is guided else {name: value}

    async def refused(
        self, backend: Any, params: Mapping[str, Any], *, prompt: Any = None, name: str = "", **options: Any
    ) -> None:
        """Fail unless the request is refused with ``UnsupportedFeature`` and nothing was started."""
        __tracebackhide__ = True
        before = await self.idle(backend)
        asked = SamplingParams(
            **{"temperature": 1.0, "max_tokens": 2, **params}
        )  # greedy completions would be equal
        streams: list[Any] = []
        try:
            streams = await backend.generate(prompt or self.prompts[0], asked, **options)
        except UnsupportedFeature as error:
            if name not in str(error):
                pytest.fail(f"the message does not name {name}: {error}")
        else:
            for stream in streams:
                stream.cancel()
            what = ", ".join(f"{k}={v!r}" for k, v in {**params, **options}.items()) or repr(prompt)
            pytest.fail(f"accepted but not claimed: {what}")
        after = await self.idle(backend, free_blocks=before.kv_blocks_free)
        assert after.output_tokens == before.output_tokens, (
            f"a refused request was started: {before}, then {after}"
        )

    async def test_parameters_that_are_not_claimed_are_refused_by_name(self, backend: Any) -> None:
        """Each field of ``SamplingParams`` and ``GuidedDecoding`` whose feature is not claimed is refused by name.

        How to fix: call ``sage_infer.sdk.check_claims(features, backend=…, params=params)`` first. Unconstrained output
        would look like a valid answer.
        """
        for name, params in self.by_claim(backend, claimed=False):
            await self.refused(backend, params, name=name)

    async def test_parameters_that_are_claimed_are_accepted(self, backend: Any) -> None:
        """Each field of ``SamplingParams`` and ``GuidedDecoding`` whose feature is claimed is accepted.

        How to fix: honour the parameter, or do not claim its feature.
        """
        for name, params in self.by_claim(backend, claimed=True):
            if name == "adapter":
                continue  # the kit does not know an existing adapter
            asked = SamplingParams(
                **{"temperature": 1.0, "max_tokens": 2, **params}
            )  # greedy completions would be equal
            try:
                await generate_one(backend, self.prompts[0], asked)
            except UnsupportedFeature as error:
                pytest.fail(f"claimed but refused: {name} ({error})")

    async def test_an_unknown_parameter_is_refused_by_name(self, backend: Any) -> None:
        """A field added by a later version of ``SamplingParams`` is refused only if it is set.

        How to fix: use an allow-list of supported fields, as ``sage_infer.sdk.check_claims`` does.
        """
        plain = greedy(2)
        fields = {a.name: getattr(plain, a.name) for a in attrs.fields(SamplingParams)}
        asked = UnheardParams(**fields, unheard_of=0.5)
        problem = await refused_by_name(backend.generate(self.prompts[0], asked), "unheard_of")
        assert not problem, problem
        await generate_one(backend, self.prompts[0], UnheardParams(**fields))

    @unless_claimed("multimodal")
    async def test_refuses_media(self, backend: Any) -> None:
        """A text-only backend refuses a prompt with an image.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` if a prompt has ``media``.
        """
        image = MediaItem(kind="image", uri=_PIXEL)
        await self.refused(backend, {}, prompt=Prompt(text="What is this?", media=(image,)))

    @unless_claimed("chat")
    async def test_refuses_chats(self, backend: Any) -> None:
        """``render_chat`` is refused if the model has no template.

        How to fix: raise ``UnsupportedFeature`` from ``render_chat``.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.render_chat([{"role": "user", "content": "Hello"}])

    @unless_claimed("prefill_decode")
    async def test_refuses_prefill(self, backend: Any) -> None:
        """``prefill`` is refused if the backend does not support separate phases.

        How to fix: raise ``UnsupportedFeature`` from ``prefill``.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.prefill(self.prompts[0], request_id=self.new_id(), params=greedy(2))

    @unless_claimed("resume")
    async def test_refuses_resume(self, backend: Any) -> None:
        """If ``resume`` is not claimed, the method is missing or refuses all states.

        How to fix: raise ``UnsupportedFeature`` from ``resume`` for any states, or claim the feature.
        """
        if hasattr(backend, "resume"):
            with pytest.raises(UnsupportedFeature):
                await backend.resume([], request_id=self.new_id())

    @unless_claimed("quant_profile")
    def test_refuses_quant_profiles(self, backend: Any) -> None:
        """``load_quant_profile`` is refused if it is not claimed.

        How to fix: raise ``UnsupportedFeature`` from ``load_quant_profile`` for any profile.
        """
        with pytest.raises(UnsupportedFeature):
            backend.load_quant_profile(QuantizationProfile(weight_bits=4))
