"""Quantization profiles, if the backend claims them."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import QuantizationProfile

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite

__all__ = ["QuantizationTests"]

_IMPOSSIBLE = QuantizationProfile(profile_id="impossible", weight_bits=31)


class QuantizationTests(GenerationSuite, kit=True):
    """Tests of ``load_quant_profile``, if it is claimed."""

    @when_claimed("quant_profile")
    async def test_names_what_a_profile_asks_too_much(self, backend: Any) -> None:
        """A profile with 31-bit weights raises ``CapabilityMismatch`` before ``start``; the message names the field.

        How to fix: in ``load_quant_profile``, compare each field of the profile with the supported values of platform
        and checkpoint; name the field, the requested value and the supported ones.
        """
        fresh = self.make_backend()
        try:
            with pytest.raises(CapabilityMismatch, match="weight_bits"):
                fresh.load_quant_profile(_IMPOSSIBLE)
        finally:
            await fresh.close()

    @when_claimed("quant_profile")
    async def test_a_profile_is_in_force_after_start(self, backend: Any) -> None:
        """With ``quant_profile`` loaded before ``start``, the capability names the profile and the instance generates.

        How to fix: configure the engine from the profile; return its id as ``quant_profile_id`` in
        ``get_capability``, together with the resulting KV schema.
        """
        if self.quant_profile is None:
            pytest.skip("quant_profile is not set")
        fresh = self.make_backend()
        fresh.load_quant_profile(self.quant_profile)
        try:
            await fresh.start()
            found = fresh.get_capability().quant_profile_id
            assert found == self.quant_profile.profile_id, f"quant_profile_id is {found!r}"
            output = await self.greedy_output(fresh)
        finally:
            await fresh.close()
        assert len(output.token_ids) > 0, "nothing was generated"
