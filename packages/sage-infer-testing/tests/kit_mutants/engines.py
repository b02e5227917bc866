"""How engines with one fault enter the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_
from sage_infer.schemas import SamplingParams
from sage_infer_testing import InferenceBackendContract

from kit_mutants.table import mutant

__all__ = ["Rewritten", "backend"]


def backend(fault: str, test: str, says: str, **settings: Any) -> Callable[[type], type]:
    """Register an engine under its fault, the test that fails on it and words of the failure."""

    def register(broken: type) -> type:
        made = {"make_backend": lambda self: broken()}
        mutant("backend", InferenceBackendContract, made, broken, fault, test, says, **settings)
        return broken

    return register


class Rewritten(ReferenceLLM):
    """Runs each request with other parameters than were asked for."""

    def rewritten(self, params: SamplingParams) -> SamplingParams:
        """What the request runs with instead."""
        return params

    def accept(self, prompts: Any, params: SamplingParams, *rest: Any) -> list[Request]:
        requests = super().accept(prompts, params, *rest)
        for sequence in sequences(requests):
            sequence.params = self.rewritten(sequence.params)
        return requests


def sequences(requests: list[Request]) -> list[Sequence_]:
    """All completions of several requests."""
    return [sequence for request in requests for sequence in request.sequences]


def always(**values: Any) -> Callable[[Any, SamplingParams], SamplingParams]:
    """A method ``rewritten`` that sets these values."""
    return lambda self, params: attrs.evolve(params, **values)
