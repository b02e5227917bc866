"""Children of a test that begin without imports, to be killed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

__all__ = ["ended", "forked"]


def forked(run: Callable[[], None]) -> int:
    """Process id of a child that runs ``run``, once it has printed a line."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            sys.stdout = os.fdopen(writer, "w")
            run()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.readline(), "the child ended before it was ready"
    return child


def ended(child: int) -> int:
    """Exit code of a child; a signal's number is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
