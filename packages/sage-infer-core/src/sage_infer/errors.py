"""The errors of every backend, store, transport and command, in one tree.

SageInferError
├── BackendUnavailable      the plug-in is missing, broken, disabled or lacks its hardware
├── ModelNotFound           no files for this model name, path or id
├── InvalidRequest          the caller's input is wrong; retrying it will fail again
│   ├── ContextLengthExceeded  a prompt or text has more tokens than the model's context
│   ├── SchemaError         data that does not match a schema (carries every problem)
│   └── ModelFileError      model files that exist but cannot be read
├── UnsupportedFeature      valid, but not supported by this backend
├── CapabilityMismatch      two sides do not match: profile and platform, or two KV schemas
├── OutOfMemory             the request or model can never fit, or does not fit now
├── Overloaded              no capacity now; carries ``retry_after`` in seconds
├── RequestCancelled        the request was cancelled by its caller, its deadline or a shutdown
├── EngineDead              the engine stopped; every open request fails with this
├── KVCorrupt               a KV block failed its checksum or its header
├── PluginFailed            a plug-in's code raised an unexpected error
├── ToolOutputError         a hardware vendor's tool printed something unexpected
└── ConfigError             the configuration file, environment or flags are invalid

Each message says what happened, what was expected, and what to do next, on one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

__all__ = [
    "BY_CODE",
    "BackendUnavailable",
    "CapabilityMismatch",
    "ConfigError",
    "ContextLengthExceeded",
    "EngineDead",
    "InvalidRequest",
    "KVCorrupt",
    "ModelFileError",
    "ModelNotFound",
    "OutOfMemory",
    "Overloaded",
    "PluginFailed",
    "Problem",
    "RequestCancelled",
    "SageInferError",
    "SchemaError",
    "ToolOutputError",
    "UnsupportedFeature",
]


class SageInferError(Exception):
    """Base of every error that sage-infer raises on purpose.

    ``code`` is a stable name for programs; ``exit_code`` is what the ``sage`` command exits with.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        return str(self)


class BackendUnavailable(SageInferError):
    """The backend cannot be opened on this machine: unknown, broken, disabled, or missing something."""

    code = "backend_unavailable"
    exit_code = 3


class ModelNotFound(SageInferError):
    """No model files were found under this name, path or id."""

    code = "model_not_found"
    exit_code = 3


class InvalidRequest(SageInferError):
    """The caller's input is wrong, and would be wrong on every backend of this kind."""

    code = "invalid_request"
    exit_code = 2


class ContextLengthExceeded(InvalidRequest):
    """A prompt or text has more tokens than the model takes. Clients shorten it, or choose another model."""

    code = "context_length_exceeded"


class Problem(tuple[str, str]):
    """One problem in a document: its JSON path (``$.a[0].b``) and a message."""

    __slots__ = ()

    def __new__(cls, path: str, message: str) -> Problem:
        return super().__new__(cls, (path, message))

    @property
    def path(self) -> str:
        return self[0]

    @property
    def message(self) -> str:
        return self[1]

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SchemaError(InvalidRequest, ValueError):
    """Data does not match its schema. ``problems`` holds all problems found, not just the first."""

    code = "schema_error"

    def __init__(self, schema: str, problems: list[Problem]) -> None:
        super().__init__(schema, problems)
        self.schema = schema
        self.problems = problems

    def __str__(self) -> str:
        return f"{self.schema}: " + "; ".join(map(str, self.problems))


class ModelFileError(InvalidRequest):
    """The model's files exist but cannot be read: not a model, truncated, or inconsistent."""

    code = "model_file_error"


class UnsupportedFeature(SageInferError):
    """A valid request that this backend, model or platform does not implement."""

    code = "unsupported_feature"
    exit_code = 4


class CapabilityMismatch(SageInferError):
    """Two sides are incompatible, such as a quantization profile and a platform."""

    code = "capability_mismatch"
    exit_code = 4


class OutOfMemory(SageInferError):
    """The model or request needs more memory than available."""

    code = "out_of_memory"
    exit_code = 5


class Overloaded(SageInferError):
    """No capacity for the request now. ``retry_after`` is the suggested wait in seconds."""

    code = "overloaded"
    exit_code = 5

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestCancelled(SageInferError):
    """The request was cancelled before it finished.

    ``by`` names the cause: the ``caller`` (``cancel`` or ``abort``), its ``deadline``, or the instance's
    ``close``. Only for the last is a retry on another instance useful.
    """

    code = "request_cancelled"

    def __init__(self, message: str, *, by: Literal["caller", "deadline", "close"] = "caller") -> None:
        super().__init__(message)
        self.by = by


class EngineDead(SageInferError):
    """The engine stopped while requests were open, or received work after it stopped."""

    code = "engine_dead"


class KVCorrupt(SageInferError):
    """A KV block's bytes do not match its checksum, size or header."""

    code = "kv_corrupt"


class PluginFailed(SageInferError):
    """A plug-in's code raised an unexpected error while it was used. The message names its wheel; the cause is
    chained.
    """

    code = "plugin_failed"


class ToolOutputError(SageInferError):
    """A hardware vendor's tool failed, or printed something that its reader does not understand.

    The message names the tool, its version if printed, and the line.
    """

    code = "tool_output_error"


class ConfigError(SageInferError):
    """The configuration is invalid: the message names the file and line, variable or flag."""

    code = "config_error"
    exit_code = 2


BY_CODE: Mapping[str, type[SageInferError]] = {
    cls.code: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, SageInferError)
}
"""The classes above by their code."""
