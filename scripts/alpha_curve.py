"""Turns sweeps over alpha into a table: test accuracy by alpha, and its paired difference to alpha = 0.

    python scripts/alpha_curve.py collect outputs/sweeps/FOLDER [FOLDER ...] > curve.csv
    python scripts/alpha_curve.py table curve.csv
    python scripts/alpha_curve.py readme README.md

`collect` reads the finished jobs of multiruns; runs with another batch size than the smallest are controls of the
curve. `table` prints Markdown. `readme` puts the table of FILE below each line `<!-- table FILE -->`.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

import yaml

from tlexp.compare.paired import mean_interval, paired

FIELDS = ("alpha", "seed", "draw", "batch_size", "epochs", "test_accuracy", "score")


def collect(folders: list[Path]) -> None:
    rows = []
    for file in (path for folder in folders for path in folder.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        config = yaml.safe_load((file.parent / "config.yaml").read_text())
        knobs = {key: config[key] for key in ("alpha", "seed", "batch_size", "epochs")}
        measured = {"test_accuracy": metrics["test/target/accuracy"], "score": metrics["score"]}
        rows.append({**knobs, "draw": config["data"]["draw"], **measured})
    if not rows:
        sys.exit(f"{', '.join(map(str, folders))}: no finished job; give the folder of a multirun")
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["batch_size"], row["alpha"], row["seed"])))


def table(file: Path) -> str:
    with file.open() as content:
        rows = list(csv.DictReader(content))
    groups: dict[tuple[int, float], dict[str, float]] = {}
    for row in rows:
        group = groups.setdefault((int(row["batch_size"]), float(row["alpha"])), {})
        if row["seed"] in group:
            sys.exit(f"{file}: alpha={row['alpha']} seed={row['seed']} stands there twice; collect one sweep a file")
        group[row["seed"]] = 100 * float(row["test_accuracy"])
    curve_batch = min(batch for batch, _ in groups)
    baseline = groups[curve_batch, 0.0]
    lines = ["| alpha | test accuracy, % | minus alpha = 0, points | p | better in |", "|---|---|---|---|---|"]
    for (batch, alpha), by_seed in sorted(groups.items()):
        name = {0.0: "0 (target only)", float("inf"): "inf (source only)"}.get(alpha, f"{alpha:g}")
        name = name if batch == curve_batch else f"0, {batch} target images a step"
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
