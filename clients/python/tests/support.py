"""Deadlines and child processes of the tests."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import tempfile
import threading
import time
import unittest
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Sized, TypeVar

#: How long a test waits for one thing, in seconds.
WAIT_S = 60.0

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T], timeout_s: float = 2 * WAIT_S) -> T:
    """As ``asyncio.run``, with a deadline."""

    async def run() -> T:
        try:
            return await asyncio.wait_for(coroutine, timeout_s)
        except asyncio.TimeoutError as error:
            # Also raised by tested code, which then says why.
            raise (error if error.args else AssertionError(f"it has not ended after {timeout_s:.0f} s")) from None

    return asyncio.run(run())


async def until(condition: Callable[[], bool], expected: str, timeout_s: float = WAIT_S) -> None:
    """Waits for a condition; fails with the words of what was expected."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"after {timeout_s:.0f} s: {expected}")
        await asyncio.sleep(0.01)


async def until_count(seen: Sized, count: int) -> None:
    """Waits until a collection has a number of elements."""
    try:
        await until(lambda: len(seen) >= count, "")
    except AssertionError:
        raise AssertionError(f"after {WAIT_S:.0f} s: {len(seen)} of {count}: {str(seen)[-1000:]}") from None


class Program:
    """A child process, which the end of its test or class kills. Its output is read at once, so that it never waits for its reader."""

    def __init__(self, command: Sequence[str], cleanup: Callable[[Callable[[], None]], None]) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self._lines: "queue.Queue[Optional[str]]" = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        cleanup(self.kill)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout_s: float = WAIT_S) -> str:
        """The next line of the output; empty at its end."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no line after {timeout_s:.0f} s; {self.errors()}") from None
        if line is None:
            # Also for the next call.
            self._lines.put(None)
        return line or ""

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Waits for the end; the exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended after {timeout_s:.0f} s; {self.errors()}") from None

    def errors(self) -> str:
        """The end of the standard error."""
        self._errors.seek(0)
        return f"standard error: {self._errors.read()[-2000:]}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(WAIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()
