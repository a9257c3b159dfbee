"""A grid: every combination of the values."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tlexp.config.schema import Config
from tlexp.sweeps.jobs import Outcome
from tlexp.sweeps.points import Composer, GridPoint, combinations
from tlexp.tracking.mlflow_run import MLflowRun


class Grid:
    """Proposes all grid points at once; composing them checks all of them before anything trains."""

    def __init__(self, composer: Composer) -> None:
        self._points = [composer.point(values) for values in combinations(composer.spec.axes)]

    def open(self, folder: Path, config: Config, concurrent: int) -> list[tuple[GridPoint, bool]]:
        """Returns nothing, since a grid has no memory: jobs that are done are known by their folders."""
        return []

    def propose(self) -> Iterator[list[GridPoint]]:
        """Yields all grid points in one batch."""
        yield self._points

    def observe(self, outcomes: Mapping[str, Outcome]) -> None:
        """Does nothing: a grid does not depend on results."""

    def close(self, run: MLflowRun) -> None:
        """Does nothing."""
