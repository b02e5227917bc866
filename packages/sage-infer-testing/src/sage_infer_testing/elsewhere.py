"""A second process that opens the same backend, imports KV and decodes it.

The parent sends one JSON line and the buffers on standard input. The child answers with one JSON line after a marker on
standard output, because engines may print other text there.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import pytest
from sage_infer.compat import wait_for
from sage_infer.schemas import DecodeState
from sage_infer.schemas.codec import from_dict, to_dict

__all__ = ["decode_elsewhere"]

_ANSWER = "sage-infer-testing-answer "
_SHOWN = 2000  # characters of a failed child's output


async def decode_elsewhere(
    suite: type, state: DecodeState, buffers: Sequence[memoryview], *, timeout_s: float
) -> list[int]:
    """Return the token ids that a child process decodes from ``state``; fail the test if the child fails."""
    if "<locals>" in suite.__qualname__:
        pytest.fail(
            f"{suite.__qualname__} must be at the top of its module, so that a child process can find it"
        )
    order = {
        "module": suite.__module__,
        "file": getattr(sys.modules.get(suite.__module__), "__file__", None),
        "suite": suite.__qualname__,
        "state": to_dict(state),
        "sizes": [buffer.nbytes for buffer in buffers],
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    sent = b"".join([json.dumps(order).encode() + b"\n", *map(bytes, buffers)])
    try:
        out, _ = await wait_for(child.communicate(sent), timeout_s)
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()
    printed = out.decode(errors="replace")
    answers = [line for line in printed.splitlines() if line.startswith(_ANSWER)]
    if child.returncode or not answers:
        pytest.fail(f"the child process ended with code {child.returncode}:\n{printed[-_SHOWN:]}")
    token_ids: list[int] = json.loads(answers[-1].removeprefix(_ANSWER))
    return token_ids


def load_suite(module: str, file: str | None, qualname: str) -> type:
    """Return the test class, imported by the name of its module or else from its file."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        if file is None:
            raise
        spec = importlib.util.spec_from_file_location(module, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is not a Python file") from None
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # the path of a class


async def answer(source: BinaryIO) -> list[int]:
    """Execute the request that ``source`` contains."""
    order = json.loads(source.readline())
    buffers = [memoryview(source.read(size)) for size in order["sizes"]]
    backend = load_suite(order["module"], order["file"], order["suite"])().make_backend()
    try:
        await backend.start()
        state = await backend.import_kv(from_dict(order["state"], DecodeState), buffers)
        stream = (await backend.decode(state, request_id=state.request_id)).stream
        return [token for delta in [d async for d in stream] for token in delta.token_ids]
    finally:
        await backend.close()


if __name__ == "__main__":
    token_ids = asyncio.run(answer(sys.stdin.buffer))
    print("\n" + _ANSWER + json.dumps(token_ids), flush=True)
