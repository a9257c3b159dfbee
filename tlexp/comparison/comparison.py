"""A sweep compared: its results with what follows from them, for reports and for Python."""

from functools import cached_property
from html import escape

import pandas as pd
from matplotlib.figure import Figure

from tlexp.comparison.analysis import MethodResult, SourceEffect, compare_methods, source_effects
from tlexp.comparison.conclusion import conclusion
from tlexp.comparison.examples import example_table
from tlexp.comparison.figures import figures
from tlexp.comparison.results import SweepResults
from tlexp.comparison.tables import cost_table, effect_table, method_table, notes
from tlexp.reporting.html import figure_html, table_html


class Comparison(SweepResults):
    """The results of a sweep and what they say: selection by validation, report on the test.

    Args:
        manifest: what the sweep wrote down: axes, grid points, what is compared.
        metrics: what the finished jobs measured, by key.

    Raises:
        UsageError: where what is compared or reported is not in the sweep.
    """

    def __repr__(self) -> str:
        return f"Comparison({self.name}: {len(self.frame)} grid points, {self.unfinished} without a result)"

    @cached_property
    def rows(self) -> list[MethodResult]:
        """Each method on each problem, by the configuration that validation selects."""
        return compare_methods(self)

    @cached_property
    def effects(self) -> list[SourceEffect]:
        """The change in error of each alpha against alpha = 0, all else equal."""
        return source_effects(self)

    def conclusion(self) -> str:
        """Returns in a few sentences what differs, how surely, and what validation recommends."""
        return conclusion(self, self.rows, self.effects)

    def table(self) -> pd.DataFrame:
        """Returns the main table as text: a row for each method on each problem."""
        return method_table(self, self.rows)

    def source_effects(self) -> pd.DataFrame:
        """Returns, as text, the change in error of each alpha against alpha = 0; empty where alpha does not vary."""
        return effect_table(self, self.effects)

    def costs(self) -> pd.DataFrame:
        """Returns, as text, parameters, time and memory of each method."""
        return cost_table(self, self.rows)

    @cached_property
    def examples(self) -> pd.DataFrame | None:
        """What the jobs' predictions say, as text: classes, calibration, ensembles; None where they are not here."""
        return example_table(self, self.rows)

    def notes(self) -> list[str]:
        """Returns what a reader of the table should know: repetitions, what is missing, what selects."""
        return notes(self, self.rows)

    def figures(self) -> dict[str, Figure]:
        """Returns the figures that the results have data for, by name."""
        return figures(self, self.rows, self.effects)

    def _repr_html_(self) -> str:
        """Shows summary, table, notes and figures in a notebook."""
        if not self.configs:
            return "<p>No job has finished: there is nothing to compare.</p>"
        lines = [f'<p style="white-space: pre-line">{escape(self.conclusion())}</p>', table_html(self.table())]
        lines += [f"<p>{escape(note)}</p>" for note in self.notes()]
        return "".join(lines + [figure_html(figure) for figure in self.figures().values()])
