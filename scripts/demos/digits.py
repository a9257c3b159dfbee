"""Tables of the demonstrations on digits: few labels, another condition, a source that hurts.

    python scripts/demos/digits.py collect outputs/sweeps/FOLDER [FOLDER ...] > docs/results/digits_l2_sp.csv
    python scripts/demos/digits.py table docs/results/digits_l2_sp.csv

`collect` reads the finished jobs of multiruns of `experiment=digits_l2_sp` or `digits_negative_transfer`. For each
method and number of labels `table` takes the rate and the strength of the pull with the best mean validation accuracy
over the draws of labels, and shows what was tested with them, beside its difference to fine-tuning on the same draws.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import yaml

from tlexp.compare.paired import mean_interval, paired
from tlexp.sweep.layout import job_folders

FIELDS = ("shots", "method", "lr", "strength", "draw", "val_accuracy", "test_accuracy", "shifted_accuracy")
NAMES = {
    "full_transfer": "fine-tuning",
    "closed_probe": "linear probe",
    "scratch": "scratch",
    "l2_sp": "fine-tuning with L2-SP",
}


def collect(folders: list[Path]) -> None:
    rows = []
    for job in (job for folder in folders for job in job_folders(folder)):
        metrics = json.loads((job / "metrics.json").read_text())
        config = yaml.safe_load((job / "config.yaml").read_text())
        term = config["terms"].get("l2_sp")
        probe = config["strategy"]["name"] == "closed_probe"
        rows.append(
            {
                "shots": config["data"]["shots"],
                "method": "l2_sp" if term else config["strategy"]["name"],
                "lr": "" if probe else config["lr"],
                "strength": term["strength"] if term else "",
                "draw": config["data"]["draw"],
                "val_accuracy": metrics["val/target/accuracy"],
                "test_accuracy": metrics["test/target/accuracy"],
                "shifted_accuracy": metrics.get("test/shifted/accuracy", ""),
            }
        )
    if not rows:
        sys.exit(f"{', '.join(map(str, folders))}: no finished job; give the folders of multiruns")
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: [str(row[key]) for key in FIELDS[:5]]))


def table(file: Path) -> str:
    with file.open() as content:
        rows = list(csv.DictReader(content))
    columns = ["test_accuracy"] + ["shifted_accuracy"] * bool(rows[0]["shifted_accuracy"])
    tried: dict[tuple[int, str], dict[tuple[str, str], dict[str, dict[str, float]]]] = {}
    for row in rows:
        setting = tried.setdefault((int(row["shots"]), row["method"]), {}).setdefault((row["lr"], row["strength"]), {})
        setting[row["draw"]] = {key: 100 * float(row[key]) for key in ("val_accuracy", *columns)}
    chosen = {
        cell: max(settings.items(), key=lambda kv: sum(v["val_accuracy"] for v in kv[1].values()) / len(kv[1]))
        for cell, settings in tried.items()
    }
    titles = {"test_accuracy": "test accuracy, %", "shifted_accuracy": "turned by 30 degrees, %"}
    heads = ["labels a class", "method"] + [h for c in columns for h in (titles[c], "minus fine-tuning, points")]
    lines = ["| " + " | ".join([*heads, "chosen"]) + " |", "|" + "---|" * (len(heads) + 1)]
    for (shots, method), ((lr, strength), by_draw) in sorted(chosen.items()):
        cells = [str(shots), NAMES[method]]
        baseline = chosen[shots, "full_transfer"][1]
        for column in columns:
            own = mean_interval([values[column] for values in by_draw.values()])
            cells.append(f"{own.mean:.1f} [{own.low:.1f}, {own.high:.1f}]")
            draws = sorted(by_draw.keys() & baseline.keys())
            d = paired([by_draw[k][column] for k in draws], [baseline[k][column] for k in draws]).difference
            cells.append("" if method == "full_transfer" else f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]")
        parts = ([f"lr={lr}"] if lr else []) + ([f"strength={strength}"] if strength else [])
        lines.append("| " + " | ".join([*cells, " ".join(parts)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("files", nargs="+", type=Path, metavar="FOLDER")
    commands.add_parser("table").add_argument("files", nargs=1, type=Path, metavar="CSV")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.files)
    else:
        print(table(arguments.files[0]))


if __name__ == "__main__":
    main()
