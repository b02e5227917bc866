"""One running engine as the calls see it, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import DecodeState, Prompt, RequestOptions, SamplingParams
from sage_infer.sdk.claims import check_claims

from sage_infer_vllm.engine.running import Running
from sage_infer_vllm.handover.held import Held
from sage_infer_vllm.handover.states import States

__all__ = ["Instance"]


@frozen
class Instance:
    """A running engine that claims ``prefill_decode``.

    Raises, when it is made:
        UnsupportedFeature: the engine claims no ``prefill_decode``.
    """

    running: Running
    backend: str
    hold_s: float

    def __attrs_post_init__(self) -> None:
        self.check_claimed("prefill_decode")

    @property
    def states(self) -> States:
        assert self.running.states is not None  # claimed, so there is a schema
        return self.running.states

    def check_claimed(self, feature: str) -> None:
        if not self.running.capability.supports(feature):
            raise UnsupportedFeature(
                f"this engine does not support {feature}: {self.running.unsplit}; use generate"
            )

    def check_claims(
        self, params: SamplingParams, options: RequestOptions, prompts: Sequence[Prompt] = ()
    ) -> None:
        check_claims(
            self.running.capability.features, backend=self.backend, params=params, options=options, prompts=prompts
        )  # fmt: skip

    def find(self, state: DecodeState) -> Held:
        if state.instance_id != self.states.instance_id:
            raise InvalidRequest(
                f"the KV of request {state.request_id!r} is in instance {state.instance_id}, but this is "
                f"{self.states.instance_id}; bring it here with export_kv and import_kv"
            )
        return self.running.held.find(state)
