"""Compares sweeps that MLflow has, or single runs, and writes the tables, the figures and the page again.

    tlexp-compare                          lists the sweeps
    tlexp-compare NAME                     one of them: its name, the id of its run, or its folder
    tlexp-compare tune_a tune_b            several side by side, each a method
    tlexp-compare --runs "params.alpha = '0.5'" --axes strategy,seed      runs by a filter of MLflow
    tlexp-compare --markdown FOLDER        the table of a comparison's files, in Markdown
    tlexp-compare --update README.md       the same, for each table of a page that names its folder

Selection is by validation and reports are on the test, as at the end of a sweep. `--methods` and `--baseline` ask
another question of the same results; the family of tests is then not the one declared before the runs, and the page
says so. A page names the folder, and a metric if it is not the sweep's own, in the line before a table, and ends it:

    <!-- comparison docs/results/sweep test/shifted/accuracy -->
    <!-- end -->
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from tlexp.comparison.analysis import compare_methods
from tlexp.comparison.report import report
from tlexp.comparison.results import Metrics, SweepResults, read_comparison, side_by_side, with_questions
from tlexp.comparison.tables import markdown
from tlexp.errors import UsageError
from tlexp.metric_names import TEST_METRICS
from tlexp.reporting.console import terminal
from tlexp.sqlite_address import sqlite_address
from tlexp.tracking import queries


def arguments() -> argparse.Namespace:
    """Returns the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP")
    store = sqlite_address(Path.cwd() / "mlflow.db")
    parser.add_argument("--uri", default=store, help="MLflow's store; default mlflow.db")
    parser.add_argument("--experiment", default="tlexp")
    parser.add_argument("--runs", metavar="FILTER", help="single runs instead of a sweep; '' for all of them")
    parser.add_argument("--markdown", type=Path, metavar="FOLDER", help="a folder with sweep.json and points.csv")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="a Markdown file whose tables are written again")
    parser.add_argument("--axes", default="strategy,alpha,seed", help="of single runs: what varies")
    parser.add_argument("--methods", help="axes that are compared, separated by commas")
    parser.add_argument("--baseline", help="what the others are compared with, such as strategy=scratch")
    parser.add_argument(
        "--metric", choices=TEST_METRICS, metavar="METRIC", help="what is reported, such as test/target/macro_f1"
    )
    parser.add_argument("--out", type=Path, help="folder of the files; default outputs/comparisons/NAME")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    options = arguments()
    try:
        compare(options)
    except UsageError as error:
        print(f"tlexp-compare: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def compare(options: argparse.Namespace) -> None:
    """Does what the arguments ask for.

    Raises:
        UsageError: for a sweep, a run or a question that is not there.
    """
    if (options.markdown or options.update) and (options.methods or options.baseline):
        raise UsageError(
            "--methods and --baseline: not with --markdown or --update, which show the sweep's own question"
        )
    if options.markdown is not None:
        print(markdown_table(options.markdown, options.metric))
    elif options.update is not None:
        if not options.update.is_file():
            raise UsageError(f"{options.update}: no such page; give a Markdown file")
        options.update.write_text(update_tables(options.update.read_text(), options.update.parent))
    else:
        compare_tracked(options)


def markdown_table(folder: Path, metric: str | None = None) -> str:
    """Returns the table of a comparison's folder in Markdown, by another metric if one is given."""
    manifest, metrics = read_comparison(folder)
    results = SweepResults({**manifest, "metric": metric or manifest["metric"]}, metrics)
    return markdown(results, compare_methods(results))


def update_tables(page: str, root: Path) -> str:
    """Returns a page with the table of each `<!-- comparison FOLDER [METRIC] -->` as its folder says.

    Folders are relative to `root`, or else to the working directory.
    """

    def table(match: re.Match[str]) -> str:
        folder = root / match[2] if (root / match[2]).exists() else Path(match[2])
        return f"{match[1]}\n{markdown_table(folder, match[3])}\n<!-- end -->"

    return re.sub(r"(<!-- comparison (\S+)(?: (\S+))? -->)\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def compare_tracked(options: argparse.Namespace) -> None:
    """Compares what MLflow has, or lists its sweeps."""
    client, experiment = queries.open_experiment(options.uri, options.experiment)
    console = terminal()
    metrics: Metrics
    if options.runs is not None:
        manifest, metrics = queries.read_runs(client, experiment, options.runs, options.axes.split(","))
    elif options.sweeps:
        ids = [queries.sweep_id(client, experiment, name) for name in options.sweeps]
        sweeps = [queries.read_sweep(client, run_id) for run_id in ids]
        manifest, metrics = sweeps[0] if len(sweeps) == 1 else side_by_side(sweeps)
    else:
        for run in queries.all_sweeps(client, experiment):
            jobs = run.data.tags.get("jobs", "?")
            console.print(f"{run.info.run_id}  {run.info.status:8}  {jobs:>4} jobs  {run.info.run_name}", markup=False)
        return
    asked: dict[str, Any] = {"baseline": options.baseline, "metric": options.metric}
    asked["methods"] = options.methods.split(",") if options.methods else None
    manifest = with_questions(manifest, asked)
    report(manifest, metrics, options.out or Path("outputs/comparisons") / manifest["name"], console)


if __name__ == "__main__":
    main()
