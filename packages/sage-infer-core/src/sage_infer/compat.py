"""Parts of newer standard libraries that Python 3.10 lacks.

On Python 3.11 and newer, all names but those of functions defined here are the standard library's own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, TypeVar

if sys.version_info < (3, 11):
    from collections.abc import Awaitable

    from exceptiongroup import BaseExceptionGroup, ExceptionGroup
    from taskgroup import Runner, TaskGroup, timeout
    from typing_extensions import Self
else:
    from asyncio import Runner, TaskGroup, timeout, wait_for
    from builtins import BaseExceptionGroup, ExceptionGroup
    from typing import Self

__all__ = [
    "BaseExceptionGroup", "ExceptionGroup", "Runner", "Self", "TaskCancelled", "TaskGroup", "is_cancelling",
    "result_of", "timeout", "uncancel", "wait_for",
]  # fmt: skip

T = TypeVar("T")


class TaskCancelled(Exception):
    """A task that was awaited with ``result_of`` was cancelled, and the caller was not."""


if sys.version_info < (3, 11):

    async def wait_for(fut: Awaitable[T], timeout: float | None) -> T:
        """``asyncio.wait_for`` that raises the built-in ``TimeoutError``, as since Python 3.11."""
        try:
            return await asyncio.wait_for(fut, timeout)
        except asyncio.TimeoutError as error:
            raise TimeoutError(*error.args) from error.__cause__

    async def result_of(task: asyncio.Task[T]) -> T:
        """Await a task, which is cancelled together with the caller.

        Raises:
            TaskCancelled: the task alone was cancelled.
        """
        try:
            # A task of this version does not count its cancellations. The shield leaves the task uncancelled when the
            # caller is cancelled.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise TaskCancelled from None
            task.cancel()
            await asyncio.wait([task])
            raise

    def is_cancelling() -> bool:
        """Whether the current task has been cancelled, and has not withdrawn that."""
        counted = getattr(asyncio.current_task(), "cancelling", None)
        return counted is not None and counted() > 0

    def uncancel(task: asyncio.Task[Any]) -> int:
        """Withdraw one cancellation of a task that has caught it; returns the number of those left.

        On Python 3.10 they are counted only for tasks of ``Runner``.
        """
        counted = getattr(task, "uncancel", None)
        return 0 if counted is None else int(counted())

else:

    async def result_of(task: asyncio.Task[T]) -> T:
        """Await a task, which is cancelled together with the caller.

        Raises:
            TaskCancelled: the task alone was cancelled.
        """
        try:
            return await task
        except asyncio.CancelledError:
            if is_cancelling():
                task.cancel()
                raise
            raise TaskCancelled from None

    def is_cancelling() -> bool:
        """Whether the current task has been cancelled, and has not withdrawn that."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def uncancel(task: asyncio.Task[Any]) -> int:
        """Withdraw one cancellation of a task that has caught it; returns the number of those left."""
        return task.uncancel()
