"""What the tests of this package share: a gateway over a backend in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules, whatever pytest's import mode

from gateway_backend import EchoBackend
from gateway_served import Served
from sage_infer_serve import GatewaySettings


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts gateways; they end with the test."""
    started: list[Served] = []

    def start(backend: EchoBackend, **options: object) -> Served:
        keys = options.pop("keys", ())
        started.append(Served(backend, GatewaySettings(port=0, **options), keys))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for served in started:
        served.close()


@pytest.fixture
def served(backend: EchoBackend, serve: Callable[..., Served]) -> Served:
    """A gateway over ``backend`` with the default settings."""
    return serve(backend)
