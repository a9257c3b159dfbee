"""The report of a sweep's comparison: on the terminal, as files, and as what a store keeps of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tlexp.comparison.comparison import Comparison
from tlexp.comparison.html import render_page
from tlexp.comparison.results import POINTS, Metrics, write_points
from tlexp.comparison.tables import COSTS, PAGE_ONLY, markdown, rich_table, write_comparison
from tlexp.reporting.console import print_table
from tlexp.reporting.fonts import make_readable

PAGE = "comparison.html"


@dataclass(frozen=True)
class Report:
    """What a comparison left.

    Attributes:
        page: the HTML page.
        files: all files, the page included.
        description: summary and main table in Markdown.
        best: the reported metric of the method with the best validation score, by name.
    """

    page: Path
    files: tuple[Path, ...]
    description: str
    best: Mapping[str, float]


def report(manifest: Mapping[str, Any], metrics: Metrics, folder: Path, console: Console) -> Report | None:
    """Compares the results of a sweep, prints the tables and writes the files.

    Args:
        manifest: what the sweep wrote down.
        metrics: of finished jobs, by key.
        folder: where the files go.
        console: where the tables are printed.

    Returns:
        None where no job has finished.
    """
    results = Comparison(manifest, metrics)
    if not results.configs:
        console.print("no job has finished: there is nothing to compare")
        return None
    rows, effects = results.rows, results.effects
    folder.mkdir(parents=True, exist_ok=True)
    plots = {}
    for name, figure in results.figures().items():
        plots[name] = folder / f"{name}.svg"
        make_readable(figure, "row")
        figure.savefig(plots[name], metadata={"Date": None})
    write_comparison(folder / "comparison.csv", results, rows)
    write_points(folder / POINTS, results)
    (folder / PAGE).write_text(render_page(results, rows, effects, plots, results.examples))
    console.print(results.conclusion(), soft_wrap=True, markup=False)
    print_table(console, rich_table(f"Comparison: {results.name}", results.table(), PAGE_ONLY))
    if len({effect.alpha for effect in effects}) > 1 and results.methods != ["alpha"]:
        print_table(console, rich_table("Effect of the source", results.source_effects()))
    if set(COSTS.values()) & set(costs := results.costs()):
        print_table(console, rich_table("Cost", costs))
    for line in (*results.notes(), f"page: {folder / PAGE}"):
        console.print(line, soft_wrap=True, markup=False)
    best = next(row for row in rows if row.best)
    return Report(
        page=folder / PAGE,
        files=(folder / PAGE, folder / "comparison.csv", folder / POINTS, *plots.values()),
        description=f"{results.conclusion()}\n\n{markdown(results, rows)}",
        best={f"best/{results.metric}": best.test.mean},
    )
