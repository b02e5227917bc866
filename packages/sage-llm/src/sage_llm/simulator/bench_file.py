"""Results of ``sage infer bench --json FILE``: the requests of a streamed run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sage_infer.errors import InvalidRequest

__all__ = ["Sample", "read_samples"]


class Sample(NamedTuple):
    """One request of a run. Times are in seconds from its start.

    Attributes:
        due: when it was due.
        first: its first text.
        end: its end.
        prompt: prompt tokens that were computed.
        context: all prompt tokens.
        output: output tokens.
    """

    due: float
    first: float
    end: float
    prompt: int
    context: int
    output: int


def read_samples(file: Path) -> list[Sample]:
    """Return the requests of a run that succeeded.

    Raises:
        InvalidRequest: it is no result of a streamed run of a server that counts tokens; the message says what is
            missing, and with which option the run is to be repeated.
    """
    try:
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidRequest(f"{file} is not JSON: {error}") from None
    samples = data.get("samples") if isinstance(data, dict) else None
    if not isinstance(samples, list):
        raise InvalidRequest(
            f"{file} has no samples; expected the result of `sage infer bench --json {file.name}`"
        )
    _check_settings(file, data.get("settings"))
    errors, found = [], []
    for number, sample in enumerate(samples):
        try:
            if sample["error"] is not None:
                errors.append(str(sample["error"]))
                continue
            found.append(_sample(sample))
        except (KeyError, TypeError, ValueError):
            raise InvalidRequest(f"{file}: sample {number} is not one of `sage infer bench`") from None
    _check(file, found, errors)
    return [one for one in found if one is not None and 0 < one.first - one.due <= one.end - one.due]


def _sample(sample: Any) -> Sample | None:
    """None for a request without text."""
    if sample["ttft_s"] is None:
        return None
    due, ttft, e2e = (float(sample[name]) for name in ("due_s", "ttft_s", "e2e_s"))
    context, output = int(sample["prompt_tokens"]), int(sample["output_tokens"])
    computed = context - int(sample.get("cached_tokens") or 0)
    return Sample(due, due + ttft, due + e2e, max(computed, 1 if context else 0), context, output)


def _check_settings(file: Path, settings: Any) -> None:
    given = settings if isinstance(settings, dict) else {}
    if given.get("endpoint") == "embeddings":
        raise InvalidRequest(f"{file} measured embeddings; measure --endpoint chat or completions")
    if given.get("stream") is False:
        raise InvalidRequest(f"{file} was measured with --no-stream; times to first token need --stream")


def _check(file: Path, found: Sequence[Sample | None], errors: Sequence[str]) -> None:
    if errors and not found:
        raise InvalidRequest(f"{file}: all {len(errors)} requests failed: {errors[0]}")
    if found and all(one is None for one in found):
        raise InvalidRequest(f"{file} has no times to first token; measure with --stream")
    if found and not any(one is not None and one.context for one in found):
        raise InvalidRequest(
            f"{file} has no prompt tokens: the server does not count them in `usage`; measure one that does"
        )
