"""The comparison as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlexp.comparison.analysis import MethodResult, SourceEffect
from tlexp.comparison.conclusion import conclusion
from tlexp.comparison.results import SweepResults
from tlexp.comparison.tables import COSTS, cost_table, effect_table, explained, method_table, notes
from tlexp.version import __version__

CAPTIONS = {
    "methods": (
        "Methods",
        "Mean and 95 % interval over repetitions, in the configuration that validation selected; filled where"
        " validation prefers it to every other method.",
    ),
    "alpha_curve": (
        "Weight of the source",
        "Test metric against alpha / (1 + alpha), from target only to source only, with 95 % bands. A star marks an"
        " alpha that validation prefers to all others.",
    ),
    "negative_transfer": (
        "Negative transfer",
        "Error with the source's loss minus error without it, paired by repetition. An interval to the right of 0 means"
        " that the source hurts.",
    ),
    "label_efficiency": ("Label efficiency", "Test metric against the number of labels, with 95 % bands."),
    "heat_map": (
        "Gain over the baseline",
        "Mean paired difference on each problem; a star marks significance after Holm adjustment.",
    ),
    "budget": (
        "What the search is worth",
        "Expected test of the trial that validation selects among so many of the search's, drawn without replacement,"
        " with 95 % bands over repetitions. A curve that has become flat says that more trials would not help.",
    ),
    "cost": (
        "Cost and accuracy",
        "Fit time on the machine of the runs; shared machines are noisy.",
    ),
}


def varied(results: SweepResults) -> str:
    """Returns what the sweep varied."""
    parts = [f"{axis} in {', '.join(results.values[axis])}" for axis in results.axes if axis not in results.replicates]
    repeated = [f"{len(results.values[axis])} values of {axis}" for axis in results.replicates]
    return "Varied: " + "; ".join([*parts, *repeated]) + "."


def render_page(
    results: SweepResults,
    rows: Sequence[MethodResult],
    effects: Sequence[SourceEffect],
    plots: Mapping[str, Path],
    examples: pd.DataFrame | None = None,
) -> str:
    """Returns the page.

    Args:
        results: of the sweep.
        rows: its methods.
        effects: of the source.
        plots: SVG files by name.
        examples: what predictions say, if they are there.
    """
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("page.html")
    embedded = [
        {
            "name": name,
            "title": CAPTIONS[name][0],
            "caption": CAPTIONS[name][1],
            "data": base64.b64encode(file.read_bytes()).decode(),
        }
        for name, file in plots.items()
    ]
    costs = cost_table(results, rows)
    return template.render(
        name=results.name,
        varied=varied(results),
        summary=conclusion(results, rows, effects),
        methods=method_table(results, rows),
        selected=[row.selected for row in rows],
        notes=notes(results, rows),
        terms=explained(results, rows, effects, () if examples is None else list(examples)),
        examples=examples,
        effects=effect_table(results, effects) if effects else None,
        costs=costs if set(COSTS.values()) & set(costs) else None,
        figures=embedded,
        version=__version__,
    )
