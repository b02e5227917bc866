"""Honesty: what a backend does not claim it refuses, and never drops silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import (
    GuidedDecoding,
    MediaItem,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
)

from sage_infer_testing.features import unless_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import greedy

__all__ = ["RefusalTests"]

_PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


class RefusalTests(GenerationSuite, kit=True):
    """One test for each feature that may be left unclaimed."""

    async def refused(
        self, backend: Any, params: Mapping[str, Any], *, prompt: Any = None, **options: Any
    ) -> None:
        """Fail unless the request is refused with ``UnsupportedFeature`` and nothing was started."""
        __tracebackhide__ = True
        before = await self.idle(backend)
        asked = SamplingParams(**{"temperature": 0.0, "max_tokens": 2, **params})
        streams: list[Any] = []
        try:
            streams = await backend.generate(prompt or self.prompts[0], asked, **options)
        except UnsupportedFeature:
            pass
        else:
            for stream in streams:
                stream.cancel()
            what = ", ".join(f"{k}={v!r}" for k, v in {**params, **options}.items()) or repr(prompt)
            pytest.fail(f"not claimed, and yet accepted: {what}")
        after = await self.idle(backend, free_blocks=before.kv_blocks_free)
        assert after.output_tokens == before.output_tokens, (
            f"a refused request was started: {before}, then {after}"
        )

    @unless_claimed("logprobs")
    async def test_refuses_logprobs(self, backend: Any) -> None:
        """``logprobs`` that is not claimed is refused.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``params.logprobs`` is not None.
        """
        await self.refused(backend, {"logprobs": 1})

    @unless_claimed("seed")
    async def test_refuses_seeds(self, backend: Any) -> None:
        """A seed is refused where the backend cannot reproduce.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``params.seed`` is not None.
        """
        await self.refused(backend, {"temperature": 1.0, "seed": 1})

    @unless_claimed("parallel_sampling")
    async def test_refuses_several_completions(self, backend: Any) -> None:
        """``n=2`` that is not claimed is refused.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``params.n`` is over 1.
        """
        await self.refused(backend, {"n": 2, "temperature": 1.0})

    @unless_claimed("penalties")
    async def test_refuses_penalties(self, backend: Any) -> None:
        """Penalties that are not claimed are refused, each of the three.

        How to fix: raise ``UnsupportedFeature`` where ``repetition_penalty`` is not 1, or one of the others is not 0.
        """
        for penalty in ({"repetition_penalty": 1.2}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}):
            await self.refused(backend, penalty)

    @unless_claimed("min_p")
    async def test_refuses_min_p(self, backend: Any) -> None:
        """``min_p`` that is not claimed is refused.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``params.min_p`` is over 0.
        """
        await self.refused(backend, {"min_p": 0.1, "temperature": 1.0})

    @unless_claimed("guided_json", "guided_regex", "guided_grammar", "guided_choice")
    async def test_refuses_guided_decoding(self, backend: Any) -> None:
        """Each kind of constraint that is not claimed is refused: free output would look like a valid answer.

        How to fix: raise ``UnsupportedFeature`` for every field of ``params.guided`` that the engine cannot enforce.
        """
        constraints: dict[str, dict[str, Any]] = {
            "guided_json": {"json_schema": {"type": "object"}},
            "guided_regex": {"regex": "[0-9]+"},
            "guided_grammar": {"grammar": self.grammar},
            "guided_choice": {"choice": ("yes", "no")},
        }
        for feature, constraint in constraints.items():
            if not backend.get_capability().supports(feature):
                await self.refused(backend, {"guided": GuidedDecoding(**constraint)})

    @unless_claimed("lora")
    async def test_refuses_adapters(self, backend: Any) -> None:
        """An adapter is refused where LoRA is not claimed.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``params.adapter`` is not None.
        """
        await self.refused(backend, {"adapter": "some-adapter"})

    @unless_claimed("priority")
    async def test_refuses_priorities(self, backend: Any) -> None:
        """A priority other than 0 is refused where the queue does not honour it.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``priority`` is not 0.
        """
        await self.refused(backend, {}, options=RequestOptions(priority=1))

    @unless_claimed("deadline")
    async def test_refuses_deadlines(self, backend: Any) -> None:
        """A deadline is refused where the backend does not end requests at it.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where ``deadline`` is not None.
        """
        await self.refused(backend, {}, options=RequestOptions(deadline=60.0))

    @unless_claimed("multimodal")
    async def test_refuses_media(self, backend: Any) -> None:
        """A prompt with an image is refused by a backend that reads text only.

        How to fix: raise ``UnsupportedFeature`` in ``generate`` where a prompt has ``media``.
        """
        image = MediaItem(kind="image", uri=_PIXEL)
        await self.refused(backend, {}, prompt=Prompt(text="What is this?", media=(image,)))

    @unless_claimed("chat")
    async def test_refuses_chats(self, backend: Any) -> None:
        """``render_chat`` is refused where the model has no template.

        How to fix: raise ``UnsupportedFeature`` from ``render_chat``.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.render_chat([{"role": "user", "content": "Hello"}])

    @unless_claimed("prefill_decode")
    async def test_refuses_prefill(self, backend: Any) -> None:
        """``prefill`` is refused where the two phases cannot be called apart.

        How to fix: raise ``UnsupportedFeature`` from ``prefill``.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.prefill(self.prompts[0], request_id=self.new_id(), params=greedy(2))

    @unless_claimed("quant_profile")
    def test_refuses_quant_profiles(self, backend: Any) -> None:
        """``load_quant_profile`` is refused where it is not claimed.

        How to fix: raise ``UnsupportedFeature`` from ``load_quant_profile``, whatever the profile.
        """
        with pytest.raises(UnsupportedFeature):
            backend.load_quant_profile(QuantizationProfile(weight_bits=4))
