"""Ctrl-C and SIGTERM as one exception, so that a run is closed as KILLED and the exit code is right."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception: a sweep does not continue with the next job."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)  # as it is, since a launcher may send the exception from another process
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.exit_code - 128).name}; finished work is kept"


def _raise(signum: int, _: FrameType | None) -> None:
    # One stop is enough: a second signal must not interrupt the closing of the run.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise Stopped(signum)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raises `Stopped` on SIGINT and SIGTERM inside the block (in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _raise) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # Once stopped, a sweep around this job closes its own run, which must not be interrupted either.
            if not (handler is _raise and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, handler)
