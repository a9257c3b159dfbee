"""A sweep's comparison from its results to the terminal, to files and to the sweep's run in MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tlexp import tracking
from tlexp.compare.figures import figures
from tlexp.compare.judge import compare, effects
from tlexp.compare.page import answer, page
from tlexp.compare.study import Result, Study
from tlexp.compare.table import markdown, notes, rich_costs, rich_effects, rich_table, write_points, write_rows

PAGE = "comparison.html"


def report(
    layout: Mapping[str, Any], results: Mapping[str, Result], folder: Path, record: tracking.Record, console: Console
) -> Path | None:
    """Compares what a sweep has: prints, writes into `folder` and adds to the sweep's run.

    Args:
        layout: what the sweep wrote down.
        results: of finished jobs, by key.
        folder: where the files go.
        record: the sweep's run; one without a client takes nothing.
        console: where the table is printed.

    Returns:
        The page; None where no job has finished.
    """
    study = Study(layout, results)
    if not study.cells:
        console.print("no job has finished, so there is nothing to compare")
        return None
    rows, sources = compare(study), effects(study)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, figure in figures(study, rows, sources).items():
        pictures[name] = folder / f"{name}.svg"
        figure.savefig(pictures[name], metadata={"Date": None})
    write_rows(folder / "comparison.csv", study, rows)
    write_points(folder / "points.csv", study)
    (folder / PAGE).write_text(page(study, rows, sources, pictures))
    console.print(rich_table(study, rows))
    if len({effect.alpha for effect in sources}) > 1 and study.methods != ["alpha"]:
        console.print(rich_effects(study, sources))
    console.print(rich_costs(study, rows))
    for line in (*notes(study, rows), f"page: {folder / PAGE}"):
        console.print(line, soft_wrap=True, markup=False)
    for file in (folder / PAGE, folder / "comparison.csv", folder / "points.csv", *pictures.values()):
        record.artifact(file, "comparison")
    record.tags({"mlflow.note.content": f"{answer(study, rows)}\n\n{markdown(study, rows)}"})
    lead = next(row for row in rows if row.leads)
    record.metrics({f"best/{study.metric}": lead.test.mean}, step=0)
    return folder / PAGE
