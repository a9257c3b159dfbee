"""Turns sweeps over alpha into a table: test accuracy by alpha, and its paired difference to alpha = 0.

    python scripts/alpha_curve.py collect outputs/sweeps/FOLDER [FOLDER ...] > curve.csv
    python scripts/alpha_curve.py table curve.csv

`collect` reads the folders of finished jobs; the first folder named is the curve, a run of alpha = 0 from a later one
with another batch size is its control. `table` prints Markdown.
"""

import argparse
import csv
import json
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


def table(file: Path) -> None:
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    curve_batch = min(int(row["batch_size"]) for row in rows)
    groups: dict[tuple[int, float], dict[int, float]] = {}
    for row in rows:
        key = (int(row["batch_size"]), float(row["alpha"]))
        groups.setdefault(key, {})[int(row["seed"])] = 100 * float(row["test_accuracy"])
    baseline = groups[curve_batch, 0.0]
    print("| alpha | test accuracy, % | minus alpha = 0, points | p | better in |")
    print("|---|---|---|---|---|")
    for (batch, alpha), by_seed in sorted(groups.items()):
        name = {0.0: "0 (target only)", float("inf"): "inf (source only)"}.get(alpha, f"{alpha:g}")
        name = name if batch == curve_batch else f"0, {batch} target images a step"
        own = mean_interval(list(by_seed.values()))
        cells = [name, f"{own.mean:.1f} [{own.low:.1f}, {own.high:.1f}]"]
        if by_seed is baseline:
            cells += ["", "", ""]
        else:
            against = paired([by_seed[seed] for seed in sorted(by_seed)], [baseline[seed] for seed in sorted(by_seed)])
            d = against.difference
            cells += [f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]", f"{against.p:.2g}", f"{against.wins} of {d.n}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folders", nargs="+", type=Path)
    commands.add_parser("table").add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.folders)
    else:
        table(arguments.file)


if __name__ == "__main__":
    main()
