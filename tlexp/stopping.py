"""Ctrl-C and SIGTERM as one exception, so that a run is closed as KILLED and the exit code tells the truth."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception: a sweep does not go on with the next job."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)  # as it is, since a launcher may send the exception from another process
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.exit_code - 128).name}; what was finished before is kept"


def _raise(signum: int, _: FrameType | None) -> None:
    # One stop is enough: a second signal must not interrupt the closing of the run.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signum)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raises `Stopped` on SIGINT and SIGTERM inside the block (in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, _raise) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            # Once stopped, a sweep around this job closes its own run: it must not be interrupted either.
            if not (handler is _raise and signal.getsignal(each) is signal.SIG_IGN):
                signal.signal(each, handler)
