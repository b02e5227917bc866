"""The kit for text generation engines."""

from __future__ import annotations

from sage_infer_testing.kits.generation.caching import CacheTests
from sage_infer_testing.kits.generation.cancellation import CancellationTests
from sage_infer_testing.kits.generation.chat import ChatTests
from sage_infer_testing.kits.generation.concurrency import ConcurrencyTests
from sage_infer_testing.kits.generation.events import EventTests
from sage_infer_testing.kits.generation.limits import LimitTests
from sage_infer_testing.kits.generation.own_end import OwnEndTests
from sage_infer_testing.kits.generation.parameters import ParameterTests
from sage_infer_testing.kits.generation.quantization import QuantizationTests
from sage_infer_testing.kits.generation.queueing import QueueTests
from sage_infer_testing.kits.generation.refusals import RefusalTests
from sage_infer_testing.kits.generation.resuming import ResumingTests
from sage_infer_testing.kits.generation.sampling import SamplingTests
from sage_infer_testing.kits.generation.stopping import StoppingTests
from sage_infer_testing.kits.generation.streaming import StreamingTests
from sage_infer_testing.kits.generation.tokens import TokenTests
from sage_infer_testing.kits.generation.transfer import TransferTests

__all__ = ["InferenceBackendContract"]


class InferenceBackendContract(
    StreamingTests,
    StoppingTests,
    OwnEndTests,
    LimitTests,
    CacheTests,
    SamplingTests,
    ParameterTests,
    RefusalTests,
    ChatTests,
    TokenTests,
    QuantizationTests,
    ConcurrencyTests,
    QueueTests,
    CancellationTests,
    TransferTests,
    EventTests,
    ResumingTests,
    kit=True,
):
    """Guarantees of an ``InferenceBackend``.

    Subclass it, set ``backend_name`` and ``model`` (or override ``make_backend``), and run pytest::

        class TestMyBackend(InferenceBackendContract):
            backend_name = "my-engine"
            model = "smollm2-135m"
            options = {"threads": 4}

    ``GenerationSuite`` describes the other settings. Tests of features that the ``CapabilityDescriptor`` does
    not claim are skipped, and the backend must refuse these features.
    """
