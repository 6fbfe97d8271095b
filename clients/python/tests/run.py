"""Runs the tests of this folder, or those that are named: ``python run.py [test_process.Signals]…``.

Each test is named when it starts, so the output of a run that was ended shows where it was. A test that exceeds its limit (``limit_s`` of
its class) ends the run with the stacks of all threads: a wait inside of the engine has no other end.
"""

from __future__ import annotations

import faulthandler
import sys
import time
import unittest
from pathlib import Path

#: The longest time of a test, and of what lies between two tests, in seconds.
LIMIT_S = 300.0
#: A test that took longer is named with its time, in seconds.
SLOW_S = 5.0


def limit(seconds: float) -> None:
    """Restarts the time after which the run ends."""
    faulthandler.dump_traceback_later(seconds, exit=True)


class Result(unittest.TextTestResult):
    """Names each test when it starts."""

    def startTest(self, test: unittest.TestCase) -> None:
        limit(getattr(test, "limit_s", LIMIT_S))
        print(f"test {test.id()}", file=sys.stderr, flush=True)
        self._began_s = time.monotonic()
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        elapsed_s = time.monotonic() - self._began_s
        if elapsed_s >= SLOW_S:
            print(f"{elapsed_s:.0f} s  {test.id()}", file=sys.stderr, flush=True)
        limit(LIMIT_S)


def main() -> int:
    """The exit status."""
    limit(LIMIT_S)
    loader = unittest.defaultTestLoader
    names = sys.argv[1:]
    suite = loader.loadTestsFromNames(names) if names else loader.discover(str(Path(__file__).parent))
    # The annotations want a class that is generic in its stream.
    result = unittest.TextTestRunner(verbosity=0, resultclass=Result).run(suite)  # type: ignore[arg-type]
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
