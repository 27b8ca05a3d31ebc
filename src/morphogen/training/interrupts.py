"""Ctrl-C and its like, heard between two steps instead of in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Ctrl-C, a request to end, a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """asked: whether the process was asked to end."""

    asked = False


@contextmanager
def heard() -> Iterator[Interrupt]:
    """Inside, the first such signal sets `asked`, the second raises KeyboardInterrupt. One that is ignored stays so;
    only a process's main thread hears any."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
