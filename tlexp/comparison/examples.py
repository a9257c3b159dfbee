"""What the kept predictions of a sweep's jobs add to its comparison: ensembles, classes, calibration, test examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlexp import run_folder
from tlexp.comparison.analysis import MethodResult
from tlexp.comparison.axes import describe
from tlexp.comparison.predictions import (
    MIN_FOR_TEMPERATURE,
    Predictions,
    by_class,
    calibration,
    difference_over_examples,
    ensemble,
    fitted_temperature,
    read_predictions,
)
from tlexp.comparison.results import SweepResults
from tlexp.comparison.statistics import Interval
from tlexp.comparison.tables import without_empty_columns

MOST_BYTES = 200e6  # of files that a comparison reads


def example_table(results: SweepResults, rows: Sequence[MethodResult]) -> pd.DataFrame | None:
    """Returns, as text, what predictions say of each method in its selected configuration, on the target's test.

    None where not every job has kept its predictions here, they are too large, or methods have different test examples.
    """
    kept = {row: _files(results, row) for row in rows}
    files = [file for by_repetition in kept.values() for file in by_repetition.values()]
    if not files or any(not by_repetition for by_repetition in kept.values()):
        return None
    if sum(file.stat().st_size for file in files) > MOST_BYTES:
        return None
    lines = []
    for problem in dict.fromkeys(row.problem for row in rows):
        of_problem = [row for row in rows if row.problem == problem]
        read = {row: {rep: read_predictions(file.parent) for rep, file in kept[row].items()} for row in of_problem}
        baseline = next((row for row in of_problem if row.method == results.baseline_method), None)
        for row in of_problem:
            others = read[baseline] if baseline is not None and baseline is not row else {}
            lines.append({**dict(problem), **_line(row, results, read[row], others, kept[row])})
    return without_empty_columns(pd.DataFrame(lines))


def _files(results: SweepResults, row: MethodResult) -> dict[Any, Path]:
    """Returns the file of each repetition of a method; nothing where one is missing."""
    folders = {rep: run_folder.find_job(results.jobs_folder, key) for rep, key in row.config.frame["key"].items()}
    files = {rep: folder / run_folder.predictions("target") for rep, folder in folders.items() if folder is not None}
    return files if len(files) == len(folders) and all(file.is_file() for file in files.values()) else {}


def _line(
    row: MethodResult,
    results: SweepResults,
    runs: dict[Any, Predictions],
    others: dict[Any, Predictions],
    files: dict[Any, Path],
) -> dict[str, str]:
    predictions = list(runs.values())
    classes = pd.concat([by_class(run) for run in predictions]).groupby("class", sort=False)["accuracy"].mean()
    line = {"method": describe((*row.method, *row.config.tuned)) or results.name}
    line["worst class"] = f"{classes.idxmin()} {100 * classes.min():.1f}"
    line["ECE"] = f"{100 * np.mean([calibration(run)['ece'] for run in predictions]):.1f}"
    line["ECE, scaled"] = _scaled(predictions, files)
    same = len({run.ids for run in predictions}) == 1
    line["ensemble"] = f"{100 * ensemble(predictions).correct.mean():.1f}" if same and len(predictions) > 1 else ""
    crossed = 1 < row.config.draws < len(row.config.frame)  # whose runs are no independent rows
    common = [] if crossed else [rep for rep in runs if rep in others]
    line["difference over examples"] = ""
    if same and len(common) > 1 and all(others[rep].ids == runs[rep].ids for rep in common):
        found = difference_over_examples([runs[rep] for rep in common], [others[rep] for rep in common])
        interval = Interval.of(found, -1, 1)
        low, high = (f"{100 * bound:+.1f}" for bound in (interval.low, interval.high))
        line["difference over examples"] = f"{100 * interval.mean:+.1f} [{low}, {high}]"
    return line


def _scaled(tests: Sequence[Predictions], files: dict[Any, Path]) -> str:
    """Returns the calibration error after temperature scaling, where validation has examples enough for it."""
    validation = [read_predictions(file.parent, split="val") for file in files.values()]
    if min(len(run.labels) for run in validation) < MIN_FOR_TEMPERATURE:
        return ""
    pairs = zip(tests, validation, strict=True)
    errors = [calibration(test.scaled(fitted_temperature(held_out)))["ece"] for test, held_out in pairs]
    return f"{100 * np.mean(errors):.1f}"
