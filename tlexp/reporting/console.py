"""Where a run's output goes. It is handed to whoever prints, so that a job of a sweep can keep its report in a file."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDTH = 120  # of reports in files and pipes
WIDEST = 1000  # of a table in them


def terminal() -> Console:
    """Returns a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def shorten_paths(text: str, longest: int) -> str:
    """Returns a text in which long paths are cut to their ends, which tell them apart."""
    return re.sub(rf"/[^\s,]{{{longest},}}", lambda found: "..." + found[0][-longest:], text)


def print_table(console: Console, table: Table) -> None:
    """Prints a table whole: a terminal folds its cells, while a file or a pipe is as wide as the table needs."""
    width = console.width
    if not console.is_terminal:
        wide = console.options.update(max_width=WIDEST)
        console.width = max(width, Measurement.get(console, wide, table).maximum)
    console.print(table)
    console.width = width


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
