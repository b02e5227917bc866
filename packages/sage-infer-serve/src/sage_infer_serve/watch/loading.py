"""Progress of loading models, on the terminal and as text."""

from __future__ import annotations

import asyncio

from sage_infer.cli.output import progress_bar
from sage_infer.contracts import HybridInferenceBackend, ModelStatus

__all__ = ["progress_text", "start_with_progress"]

_LOOK_S = 0.1  # interval between redraws


def progress_text(status: ModelStatus) -> str:
    """One line, such as ``minilm: reading weights (40%)``."""
    share = "" if status.share is None else f" ({status.share:.0%})"
    return f"{status.model_id}: {status.stage or status.state}{share}"


async def start_with_progress(backend: HybridInferenceBackend) -> None:
    """Start a backend and show a progress bar per model and stage; raises the errors of ``start``."""
    starting = asyncio.ensure_future(backend.start())
    try:
        with progress_bar() as report:
            while not starting.done():
                for model in backend.list_models():
                    status = backend.get_model_status(model.model_id)
                    if status.state == "loading":
                        report(f"{status.model_id}: {status.stage or 'loading'}", status.share)
                await asyncio.wait({starting}, timeout=_LOOK_S)
        starting.result()
    finally:
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
