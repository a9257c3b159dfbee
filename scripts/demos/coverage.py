"""How often a 95 % interval covers the truth where repetitions share seeds, label draws, or test examples.

    python scripts/demos/coverage.py > docs/results/coverage.csv
    python scripts/demos/coverage.py --table docs/results/coverage.csv

Values are simulated from a model whose truth is known: normal effects of draws, seeds and the rest; means of labels
drawn from a pool that is itself a sample; means of test examples of one data set that is split anew. `naive` is the t
interval of independent repetitions, `used` that of tlexp/comparison/designs.py.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator

from tlexp.comparison.designs import Estimate, one_way, overlap_of_draws, two_way

FIELDS = ("design", "setting", "naive", "used", "simulations")
POOL, SAMPLES, TESTED = 108, 200, 80
Pair = tuple[Estimate, Estimate]


def crossed(rng: Generator, of_draw: float, of_seed: float, rest: float) -> Pair:
    """Five draws with five seeds each."""
    table = rng.normal(0, of_draw, (5, 1)) + rng.normal(0, of_seed, (1, 5)) + rng.normal(0, rest, (5, 5))
    return one_way(table.ravel()), two_way(table)


def from_pool(rng: Generator, shots: int, draws: int) -> Pair:
    """Draws of `shots` labels of a pool."""
    pool = rng.normal(size=POOL)
    means = np.array([rng.permutation(pool)[:shots].mean() for _ in range(draws)])
    return one_way(means), one_way(means, overlap_of_draws(shots, POOL))


def splits(rng: Generator, times: int) -> Pair:
    """Tests of one data set that is split anew."""
    data = rng.normal(size=SAMPLES)
    means = np.array([rng.permutation(data)[:TESTED].mean() for _ in range(times)])
    return one_way(means), one_way(means, TESTED / (SAMPLES - TESTED))


DESIGNS: list[tuple[str, str, Callable[[Generator], Pair]]] = [
    *(
        (
            "5 draws x 5 seeds, crossed",
            f"sd of draw {sds[0]:g}, seed {sds[1]:g}, rest {sds[2]:g}",
            lambda rng, sds=sds: crossed(rng, *sds),
        )
        for sds in ((1, 0.1, 0.3), (1, 0.5, 0.5), (0.3, 0.3, 1), (0, 0, 1))
    ),
    *(
        (
            "label draws from one pool",
            f"{draws} draws of {shots} of {POOL}",
            lambda rng, shots=shots, draws=draws: from_pool(rng, shots, draws),
        )
        for shots, draws in ((5, 5), (5, 10), (20, 10), (50, 5), (50, 10))
    ),
    ("splits of one data set", f"10 splits, {TESTED} of {SAMPLES} tested", lambda rng: splits(rng, 10)),
]


def covers(found: Estimate) -> bool:
    return abs(found.mean) <= found.half_width()


def simulate(simulations: int) -> list[dict[str, object]]:
    rows = []
    for design, setting, run in DESIGNS:
        rng = np.random.default_rng(0)
        pairs = [run(rng) for _ in range(simulations)]
        naive, used = (sum(covers(pair[index]) for pair in pairs) / simulations for index in (0, 1))
        rows.append(dict(zip(FIELDS, (design, setting, round(naive, 4), round(used, 4), simulations), strict=True)))
    return rows


def table(file: Path) -> str:
    with file.open() as content:
        rows = list(csv.DictReader(content))
    lines = ["| repetitions | setting | naive interval | interval used |", "|---|---|---|---|"]
    for row in rows:
        naive, used = (f"{100 * float(row[name]):.1f} %" for name in ("naive", "used"))
        lines.append(f"| {row['design']} | {row['setting']} | {naive} | {used} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(simulate(options.simulations))


if __name__ == "__main__":
    main()
