"""Options of requests: claimed options are accepted, all others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import SLO, RequestOptions, Retention
from sage_infer.sdk import FEATURE_OF

from sage_infer_testing.kits.lifecycle import CapabilitySuite

__all__ = ["OptionTests", "UnheardOptions", "refused_by_name"]


@attrs.frozen(kw_only=True)
class UnheardOptions(RequestOptions):
    """Options of a later version, with a field that is unknown to all current backends."""

    unheard_of: str = ""


async def refused_by_name(call: Any, name: str) -> str:
    """Return why the call was not refused with an ``UnsupportedFeature`` that names the field; empty if it was."""
    try:
        await call
    except UnsupportedFeature as error:
        return "" if name in str(error) else f"the message does not name {name}: {error}"
    return f"{name} was accepted"


class OptionTests(CapabilitySuite, kit=True):
    """Tests of calls that accept ``RequestOptions``.

    Attributes:
        option_values: for each field of ``RequestOptions``, a value that the backend accepts if it claims the feature.
    """

    option_values: ClassVar[Mapping[str, Any]] = {
        "priority": 1, "deadline": 600.0, "tenant": "kit", "session": "kit-session", "service_class": "batch",
        "slo": SLO(ttft_s=60.0), "chain": "kit-chain", "cache_salt": "kit-salt", "retention": Retention(value=2.0),
        "trace": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    }  # fmt: skip

    def options_by_claim(self, backend: Any, *, claimed: bool) -> dict[str, Any]:
        """Return values of the options whose features the backend claims, or does not claim."""
        table = FEATURE_OF[RequestOptions]
        supports = backend.get_capability().supports
        return {
            name: value
            for name, value in self.option_values.items()
            if bool(supports(table[name] or "")) is claimed
        }

    def test_the_kit_knows_every_option(self) -> None:
        """``option_values`` has a value for each field of ``RequestOptions``.

        How to fix: if the class overrides ``option_values``, add the missing fields; otherwise the installed
        sage-infer-core is newer than this kit.
        """
        fields = {attribute.name for attribute in attrs.fields(RequestOptions)}
        assert self.option_values.keys() == fields

    async def test_options_that_are_claimed_are_accepted(self, backend: Any) -> None:
        """Each option whose feature is claimed is accepted, alone and together with the others.

        How to fix: honour the option, or do not claim its feature.
        """
        claimed = self.options_by_claim(backend, claimed=True)
        for name, value in claimed.items():
            await self.ask(backend, options=RequestOptions(**{name: value}))
        await self.ask(backend, options=RequestOptions(**claimed))

    async def test_options_that_are_not_claimed_are_refused_by_name(self, backend: Any) -> None:
        """Each option whose feature is not claimed is an ``UnsupportedFeature`` that names it.

        How to fix: call ``sage_infer.sdk.check_claims(features, backend=…, options=options)`` first in every method
        that takes options.
        """
        problems = [
            await refused_by_name(self.ask(backend, options=RequestOptions(**{name: value})), name)
            for name, value in self.options_by_claim(backend, claimed=False).items()
        ]
        assert not any(problems), "; ".join(filter(None, problems))

    async def test_an_unknown_option_is_refused_by_name(self, backend: Any) -> None:
        """A field added by a later version of ``RequestOptions`` is refused only if it is set.

        How to fix: use an allow-list of supported fields, as ``sage_infer.sdk.check_claims`` does, not a list of
        unsupported ones.
        """
        problem = await refused_by_name(
            self.ask(backend, options=UnheardOptions(unheard_of="x")), "unheard_of"
        )
        assert not problem, problem
        await self.ask(backend, options=UnheardOptions())

    async def test_no_options_are_as_default_ones(self, backend: Any) -> None:
        """``options=None`` and ``RequestOptions()`` are accepted by every backend.

        How to fix: treat None as ``RequestOptions()``.
        """
        await self.ask(backend, options=None)
        try:
            await self.ask(backend, options=RequestOptions())
        except UnsupportedFeature as error:
            pytest.fail(f"options without a value were refused: {error}")
