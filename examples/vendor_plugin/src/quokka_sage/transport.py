"""A ``Transport`` between files of one machine."""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import TransportReport
from sage_infer.sdk import verify


class QuokkaTransport:
    def __init__(self, settings):
        self.settings = settings

    def can_reach(self, source, target):
        return {urlsplit(source.uri).scheme, urlsplit(target.uri).scheme} == {"file"}

    def register(self, region):
        pass

    async def execute(self, plan, *, on_step=None):
        began = time.monotonic()
        for step in plan.steps:
            if not self.can_reach(step.source, step.target):
                raise InvalidRequest(f"{step.source.uri} → {step.target.uri} is not from file: to file:")
            if step.chunk.checksum is None:
                raise InvalidRequest(f"chunk {step.chunk.chunk_id} has no checksum; export it again")
            verify(b"", step.chunk.checksum)  # refuses unknown algorithms
        problems = {}
        for index, step in sorted(enumerate(plan.steps), key=lambda numbered: numbered[1].priority):
            problems[index] = await asyncio.to_thread(_move, step)
            if on_step:
                on_step(index, "failed" if problems[index] else "done")
        failed = [bool(problems[index]) for index in range(len(plan.steps))]
        return TransportReport(
            plan_id=plan.plan_id,
            statuses=["failed" if bad else "done" for bad in failed],
            errors=[problems[index] for index, bad in enumerate(failed) if bad],
            moved_bytes=sum(step.nbytes for step, bad in zip(plan.steps, failed, strict=True) if not bad),
            elapsed_s=time.monotonic() - began,
        )

    async def close(self):
        pass


def _move(step):
    """Copy one chunk; the target is whole or untouched. Returns what went wrong, or an empty text."""
    source, target = (Path(unquote(urlsplit(place.uri).path)) for place in (step.source, step.target))
    try:
        data = source.read_bytes()
        if len(data) != step.chunk.nbytes or not verify(data, step.chunk.checksum):
            return f"{source} does not hold chunk {step.chunk.chunk_id}; export it again"
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as aside:
            aside.write(data)
        os.replace(aside.name, target)
    except OSError as error:
        return f"{source} → {target}: {error}"
    return ""
