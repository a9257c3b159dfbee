"""Turns sweeps over alpha, or over strategies, into a table: test accuracy, and its paired difference to a baseline.

    python scripts/alpha_curve.py collect outputs/sweeps/FOLDER [FOLDER ...] > curve.csv
    python scripts/alpha_curve.py table curve.csv
    python scripts/alpha_curve.py readme README.md

`collect` reads the finished jobs of multiruns; runs with another batch size than the smallest are controls of the
curve. The baseline is alpha = 0 or, where there are several strategies, the linear probe; runs are paired by seed and
by the draw of the labels. `table` prints Markdown. `readme` puts the table of FILE below each line
`<!-- table FILE -->`.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

import yaml

from tlexp.compare.paired import mean_interval, paired
from tlexp.sweep.layout import job_folders

FIELDS = ("strategy", "alpha", "seed", "draw", "batch_size", "epochs", "test_accuracy", "score")
ORDER = ("batch_size", "strategy", "alpha", "seed", "draw")


def collect(folders: list[Path]) -> None:
    rows = []
    for job in (job for folder in folders for job in job_folders(folder)):
        metrics = json.loads((job / "metrics.json").read_text())
        config = yaml.safe_load((job / "config.yaml").read_text())
        knobs = {"strategy": config["strategy"]["name"]}
        knobs |= {key: config[key] for key in ("alpha", "seed", "batch_size", "epochs")}
        measured = {"test_accuracy": metrics["test/target/accuracy"], "score": metrics["score"]}
        rows.append({**knobs, "draw": config["data"]["draw"], **measured})
    if not rows:
        sys.exit(f"{', '.join(map(str, folders))}: no finished job; give the folder of a multirun")
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: [row[key] for key in ORDER]))


def table(file: Path) -> str:
    with file.open() as content:
        rows = list(csv.DictReader(content))
    groups: dict[tuple[int, str, float], dict[tuple[str, str], float]] = {}
    for row in rows:
        group = groups.setdefault((int(row["batch_size"]), row["strategy"], float(row["alpha"])), {})
        if (pair := (row["seed"], row["draw"])) in group:
            sys.exit(f"{file}: {row['strategy']} alpha={row['alpha']} stands there twice with seed and draw {pair}")
        group[pair] = 100 * float(row["test_accuracy"])
    curve_batch, strategies = min(batch for batch, *_ in groups), {strategy for _, strategy, _ in groups}
    several = len(strategies) > 1
    baseline = groups[curve_batch, "linear_probe" if several else strategies.pop(), 0.0]
    names = ("strategy", "minus linear_probe") if several else ("alpha", "minus alpha = 0")
    lines = [f"| {names[0]} | test accuracy, % | {names[1]}, points | p | better in |", "|---|---|---|---|---|"]
    for (batch, strategy, alpha), by_seed in sorted(groups.items()):
        name = {0.0: "0 (target only)", float("inf"): "inf (source only)"}.get(alpha, f"{alpha:g}")
        name = name if batch == curve_batch else f"0, {batch} target images a step"
        name = f"{strategy} ({len(by_seed)} draws)" if several else name
        own = mean_interval(list(by_seed.values()))
        cells = [name, f"{own.mean:.1f} [{own.low:.1f}, {own.high:.1f}]"]
        if by_seed is baseline:
            cells += ["", "", ""]
        else:
            seeds = sorted(by_seed.keys() & baseline.keys())
            against = paired([by_seed[seed] for seed in seeds], [baseline[seed] for seed in seeds])
            d = against.difference
            cells += [f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]", f"{against.p:.2g}", f"{against.wins} of {d.n}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def readme(page: Path) -> None:
    shown = re.compile(r"<!-- table (\S+) -->\n(?:\|.*\n)*")
    page.write_text(shown.sub(lambda m: f"<!-- table {m[1]} -->\n{table(page.parent / m[1])}\n", page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("files", nargs="+", type=Path, metavar="FOLDER")
    commands.add_parser("table").add_argument("files", nargs=1, type=Path, metavar="CSV")
    commands.add_parser("readme").add_argument("files", nargs=1, type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.files)
    elif arguments.command == "table":
        print(table(arguments.files[0]))
    else:
        readme(arguments.files[0])


if __name__ == "__main__":
    main()
