"""Where a run's output goes. It is handed to whoever prints, so that a job of a sweep can keep its report in a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

WIDTH = 120  # of reports in files and pipes


def terminal() -> Console:
    """Returns a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


@dataclass(frozen=True)
class Output:
    """The two places a run writes to.

    Attributes:
        report: gets the report before and after training.
        screen: gets the progress bar and, where the report is elsewhere, one line at the end.
    """

    report: Console
    screen: Console

    @classmethod
    def to_screen(cls) -> "Output":
        """Returns an output that shows everything."""
        console = terminal()
        return cls(console, console)

    @property
    def report_is_shown(self) -> bool:
        """Whether the report itself is on the screen."""
        return self.report is self.screen


@contextmanager
def report_in(file: Path) -> Iterator[Output]:
    """Appends the report to a file and leaves one line for the screen."""
    with file.open("a") as stream:
        # In a notebook rich would show it there, whatever the file.
        yield Output(Console(file=stream, width=WIDTH, highlight=False, force_jupyter=False), terminal())
