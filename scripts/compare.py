"""Compares sweeps that MLflow has, or single runs, and writes the table, the figures and the page once more.

    python scripts/compare.py                          the sweeps there are
    python scripts/compare.py NAME                     one of them: its name, the id of its run, or its folder
    python scripts/compare.py tune_a tune_b            several side by side, each a method
    python scripts/compare.py --markdown FOLDER        the table of a comparison's files, for a page such as the README
    python scripts/compare.py --runs "params.alpha = '0.5'" --axes strategy,seed      runs by a filter of MLflow

Choices are made by validation and reported on the test, as at the end of a sweep. `--methods` and `--baseline` ask
another question of the same results; the family of tests is then not the one declared before the runs, and the page
says so.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tlexp import tracking
from tlexp.compare import judge
from tlexp.compare.report import report
from tlexp.compare.study import Result, Study, read_files, side_by_side
from tlexp.compare.table import markdown
from tlexp.config import TESTED
from tlexp.errors import UsageError
from tlexp.report import console


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP")
    parser.add_argument("--uri", default=f"sqlite:///{Path.cwd()}/mlflow.db", help="MLflow's store; mlflow.db here")
    parser.add_argument("--experiment", default="tlexp")
    parser.add_argument("--runs", metavar="FILTER", help="single runs instead of a sweep; '' for all of them")
    parser.add_argument(
        "--markdown", type=Path, metavar="FOLDER", help="with sweep.json and points.csv; prints the table"
    )
    parser.add_argument("--axes", default="strategy,alpha,seed", help="of single runs: what varies")
    parser.add_argument("--methods", help="axes that are compared, separated by commas")
    parser.add_argument("--baseline", help="what the others are compared with, such as strategy=scratch")
    parser.add_argument(
        "--metric", choices=TESTED, metavar="METRIC", help="what is reported, such as test/target/macro_f1"
    )
    parser.add_argument("--out", type=Path, help="folder of the files; outputs/comparisons/NAME")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    try:
        compare(given)
    except UsageError as error:
        sys.exit(f"compare: {error}")


def compare(given: argparse.Namespace) -> None:
    if given.markdown is not None:
        study = Study(*read_files(given.markdown))
        print(markdown(study, judge.compare(study)))
        return
    client, experiment = tracking.find(given.uri, given.experiment)
    if given.runs is not None:
        layout, measured = tracking.read_runs(client, experiment, given.runs, given.axes.split(","))
    elif given.sweeps:
        found = [tracking.read_sweep(client, tracking.sweep_id(client, experiment, each)) for each in given.sweeps]
        layout, measured = found[0] if len(found) == 1 else side_by_side(found)
    else:
        for run in tracking.all_sweeps(client, experiment):
            jobs = run.data.tags.get("jobs", "?")
            console.print(f"{run.info.run_id}  {run.info.status:8}  {jobs:>4} jobs  {run.info.run_name}", markup=False)
        return
    asked: dict[str, Any] = {"baseline": given.baseline, "metric": given.metric}
    asked["methods"] = given.methods.split(",") if given.methods else None
    changed = {key: value for key, value in asked.items() if value is not None and value != layout[key]}
    layout = {**layout, **changed, "changed": [*layout.get("changed", ()), *changed]}
    folder = given.out or Path("outputs/comparisons") / layout["name"]
    results = {key: Result(metrics["score"], metrics) for key, metrics in measured.items()}
    report(layout, results, folder, tracking.Record(), console)


if __name__ == "__main__":
    main()
