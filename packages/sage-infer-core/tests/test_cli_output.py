"""What commands print on a terminal: colours, bars, a prompt. The terminal is a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Sage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")


class Terminal:
    """A command with a pseudo-terminal for its standard streams."""

    def __init__(self, sage: Sage, *arguments: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sage_infer.cli.main", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=sage.folder,
            env={**sage.environment, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, wanted: str, times: int = 1) -> str:
        """Everything printed until ``wanted`` is there, as often as said."""
        deadline = time.monotonic() + 300
        while self.text.count(wanted) < times:
            assert time.monotonic() < deadline, f"{wanted!r} never came: {self.text!r}"
            self._read()
        return self.text

    def finish(self) -> str:
        while self._read():
            pass
        assert self.process.wait(300) == 0, self.text
        os.close(self.master)
        return self.text

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], 300)
        try:
            data = os.read(self.master, 65536) if ready else b""
        except OSError:  # Linux: the other side is closed
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)


def test_states_are_coloured_on_a_terminal_unless_unwanted(sage: Sage) -> None:
    assert "\x1b[32mready" in Terminal(sage, "infer", "backend", "list").finish()
    assert "\x1b[" not in Terminal(sage, "infer", "backend", "list", NO_COLOR="1").finish()


def test_preparing_draws_bars(sage: Sage, gguf: Path) -> None:
    text = Terminal(sage, "infer", "model", "add", str(gguf), "-b", "toy").finish()
    assert "folding for toy" in text
    assert "100%" in text


def test_generate_says_what_it_took(sage: Sage, gguf: Path) -> None:
    text = Terminal(sage, "infer", "generate", "abc", "-m", str(gguf)).finish()
    assert "cba" in text
    assert "[3 + 3 tokens" in text


def test_chat_prompts_and_leaves_at_the_end_of_input(sage: Sage, gguf: Path) -> None:
    terminal = Terminal(sage, "infer", "chat", "-m", str(gguf))
    terminal.read_until("> ")
    terminal.type("abc\n")
    terminal.read_until("cba")
    terminal.read_until("> ", times=2)
    terminal.type("\x04")
    assert "/reset clears" in terminal.finish()
