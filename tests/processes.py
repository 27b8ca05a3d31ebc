"""Commands in processes of their own that are forks of this one, so that torch is not imported again."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from morphogen.cli import main


def forked(act: Callable[[], int]) -> int:
    """The id of a process that does something and ends with the exit code that this gives; 1 where it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the threads of pytest-xdist, from Python 3.12 on
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = act()
        finally:
            os._exit(code)
    return pid


class Command:
    """A command of morphogen's, as `subprocess.Popen` has them: stdout, stderr, pid and, once it ended, returncode."""

    stdout: TextIO
    stderr: TextIO
    pid: int
    returncode: int

    def __init__(self, *args: object) -> None:
        self._args = [str(arg) for arg in args]

    def __enter__(self) -> Self:
        pipes = os.pipe(), os.pipe()
        self.stdout, self.stderr = (os.fdopen(reading) for reading, _ in pipes)
        self.pid = forked(lambda: self._run(*(writing for _, writing in pipes)))
        for _, writing in pipes:
            os.close(writing)
        return self

    def _run(self, out: int, err: int) -> int:
        """In the fork, as a fresh process would: with what signals do by default, and stdout flushed at the end."""
        self.stdout.close()
        self.stderr.close()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            main(self._args)
        except SystemExit as end:
            sys.stdout.flush()
            return end.code if isinstance(end.code, int) else 1
        return 0

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stdout.close()
        self.stderr.close()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
