"""Constraints are first tested in a child process, which may crash or be killed without harm to the engine.

A text of a few kilobytes can overflow the stack of llguidance's compiler or keep it busy for minutes.
``Trial.run`` sends a constraint to the child; if it succeeds within its time, it is compiled in this process.

The child runs this module as a program. Messages in both directions are JSON with a length prefix. It forks for each
constraint, so that a crash costs neither another start nor another conversion of the vocabulary. It has a lower
priority than the engine, and after some milliseconds the lowest one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import llguidance
from sage_infer.system.python import module_command

from sage_infer_openvino.engine.grammar.form import (
    CompileError,
    llguidance_form,
    matcher_of,
    vocabulary_of,
)

__all__ = ["CPU_S", "NotStarted", "Trial"]

CPU_S = 0.5  # CPU time of the child for one constraint, independent of machine load
_WALL_S = 60.0
_STACK_BYTES = 4 << 20  # half the stack of threads in this process
_MEMORY_BYTES = 2 << 30
_NICE = 10  # with which a busy engine leaves it a tenth of a processor
_SHORT_S = 0.05  # most constraints take less; longer ones get the lowest priority
_LOWEST_NICE = 19  # with which a busy engine leaves it a hundredth of a processor
_LENGTH = struct.Struct("<I")


class NotStarted(CompileError):
    """There is no child process, which says nothing about the constraint."""


class Trial:
    """A child process for one vocabulary, started on first use. One thread uses it at a time."""

    def __init__(
        self, tokenizer_json: str, n_vocab: int, eos_token_ids: list[int], *, cpu_s: float = CPU_S
    ) -> None:
        self._cpu_s = cpu_s
        self._hello = {"tokenizer": tokenizer_json, "n_vocab": n_vocab, "eos": eos_token_ids, "cpu_s": cpu_s}
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, kind: str, text: str) -> str:
        """The constraint in llguidance's format, after the child has compiled it and computed a first mask.

        Raises:
            CompileError: it cannot be compiled, crashed the child, or took too long.
        """
        child = self._started()
        answer = self._ask(child, {"kind": kind, "text": text})
        if answer is None:  # killed after _WALL_S
            child.wait()
            self._child = None
            answer = {"died": signal.SIGKILL}
        if "died" in answer:
            too_long = answer["died"] in (signal.SIGPROF, signal.SIGKILL)
            problem = (
                f"took more than {self._cpu_s:g} s to compile" if too_long else "is too complex to compile"
            )
            raise CompileError(f"the constraint {problem}; simplify it", is_expensive=True)
        if "error" in answer:
            raise CompileError(answer["error"], is_unsupported=answer["is_unsupported"])
        form: str = answer["form"]
        return form

    def close(self) -> None:
        """End the child. Safe to call twice."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = module_command("sage_infer_openvino.engine.grammar.trial")
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if self._ask(self._child, self._hello) is None:
                code = self._child.wait()
                self._child = None
                raise NotStarted(f"the grammar compiler's process did not start (exit status {code})")
        return self._child

    @staticmethod
    def _ask(child: subprocess.Popen[bytes], message: dict[str, Any]) -> dict[str, Any] | None:
        """The child's answer; None if it exited instead."""
        assert child.stdin is not None
        assert child.stdout is not None
        too_late = threading.Timer(_WALL_S, child.kill)
        too_late.start()
        try:
            _send(child.stdin, message)
            return _receive(child.stdout)
        except OSError:
            return None
        finally:
            too_late.cancel()


def _send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def main() -> None:
    """The child process; it exits when the parent closes the pipe."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.nice(_NICE)
    if hasattr(os, "SCHED_BATCH"):  # Linux: it does not interrupt the engine's threads when it wakes up
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    hello = _receive(requests)
    if hello is None:
        return
    vocabulary = vocabulary_of(hello["tokenizer"], hello["n_vocab"], hello["eos"])
    _send(answers, {})
    while (request := _receive(requests)) is not None:
        _send(answers, _tried(request, vocabulary, hello["cpu_s"]))


def _tried(request: dict[str, Any], vocabulary: llguidance.LLTokenizer, cpu_s: float) -> dict[str, Any]:
    """The answer of a process for this one constraint, or how it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writing, "wb") as pipe:
                signal.setitimer(signal.ITIMER_PROF, cpu_s)  # the signal also ends native code
                threading.stack_size(_STACK_BYTES)
                thread = threading.Thread(target=lambda: _send(pipe, _answer(request, vocabulary)))
                thread.start()
                thread.join()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if not select.select([pipe], [], [], _SHORT_S)[0]:
            _give_way(pid)
        answer = _receive(pipe)
    _, status = os.waitpid(pid, 0)
    return answer or {"died": os.WTERMSIG(status)}


def _give_way(pid: int) -> None:
    """Give all threads of a child the lowest priority. On Linux, each thread has its own."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:  # not Linux, or it has ended
        threads = [pid]
    for thread in threads:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_NICE)


def _answer(request: dict[str, Any], vocabulary: llguidance.LLTokenizer) -> dict[str, Any]:
    try:
        form = llguidance_form(request["kind"], request["text"], vocabulary)
        matcher = matcher_of(vocabulary, form)
        matcher.compute_bitmask()
        matcher.deep_copy()
    except CompileError as error:
        return {"error": str(error), "is_unsupported": error.is_unsupported}
    except RecursionError:
        return {"error": "the constraint is nested too deeply", "is_unsupported": False}
    return {"form": form}


if __name__ == "__main__":
    main()
