"""What a choice by few labels costs: one held-out set, folds, and folds with a final training on all labels.

    python scripts/demos/choosing.py PROBLEM OPTION... >> docs/results/choosing.csv
    python scripts/demos/choosing.py --table docs/results/choosing.csv
    python scripts/demos/choosing.py --figure docs/results/choosing.csv docs/images/choosing.svg

A problem is what the options of `run.py` say, with a head for both domains on a frozen backbone. Its 40 configurations are
solved probes: ten penalties with four weights of the source. For each draw of labels every configuration is chosen from by
the loss on one held-out label of five, or by the loss on all labels that five folds predict, and is tested on the test
split, trained on four fifths of the labels or on all. Regret is how much worse the chosen configuration is than the best on
average, in points; the choice takes the mean score over J draws.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from numpy.typing import NDArray

from tlexp.config.load import CONF, load
from tlexp.data.splits import split
from tlexp.models.logistic_regression import LogisticRegressionSolver
from tlexp.runs.build import build
from tlexp.runs.run import ensure_source_weights
from tlexp.reporting.console import Output

PENALTIES, ALPHAS = np.logspace(-5, 4, 10), (0.0, 0.1, 1.0, 10.0)
RULES = ("held out", "5 folds", "5 folds, refit")
FIELDS = ("problem", "shots", "labels", "rule", "J", "regret", "se", "accuracy")
DRAWS, RESAMPLES = 20, 2000
Features = tuple[torch.Tensor, torch.Tensor]


def domains(options: Sequence[str]) -> tuple[Features, Features, Any]:
    """Returns features and labels of all of the target and of the source's training split, and the target's domain."""
    fixed = ("strategy=shared_representation", "head=one", "alpha=1", "epochs=1", "augment=none", "tracking=none")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = load(hydra.compose("config", overrides=[*fixed, *options]), root=Path.cwd())
    if config.init == "source":
        ensure_source_weights(config, Output.to_screen())
    data = build(config)
    model, loaders = data.task.model, data.data
    target = loaders.domains["target"]
    found = {name: loaders.features(model, "target", name)[0] for name in ("train", "val", "test")}
    taken = {name: target.indices(name) for name in found}
    whole = target.unlabelled()
    rest = torch.cat(
        [model.encode(whole.inputs("train", loaders.spec, None)[range(len(whole.indices("train")))], "target")]
    )
    features = torch.zeros(len(target.samples.labels), rest.shape[1])
    features[torch.from_numpy(whole.indices("train"))] = rest
    for name, indices in taken.items():
        features[torch.from_numpy(indices)] = found[name]
    return (features, torch.from_numpy(target.samples.labels)), loaders.features(model, "source", "train"), target


def losses_and_right(
    target: Features, source: Features, train: NDArray[np.int64], at: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    """Returns, for each set of examples, (configurations, 2): the summed loss and the number of right predictions."""
    classes = int(target[1].max()) + 1
    results: list[list[tuple[float, float]]] = [[] for _ in at]
    for alpha in ALPHAS:
        x, y = target[0][train], target[1][train]
        weights = np.ones(len(train))
        if alpha:
            x, y = torch.cat([x, source[0]]), torch.cat([y, source[1]])
            weights = np.concatenate([weights, np.full(len(source[1]), alpha * len(train) / len(source[1]))])
        solver = LogisticRegressionSolver(x, y, classes, weights)
        for layer in solver.path(PENALTIES):
            for result, indices in zip(results, at, strict=True):
                with torch.no_grad():
                    logits = layer(target[0][indices])
                loss = torch.nn.functional.cross_entropy(logits, target[1][indices], reduction="sum")
                result.append((float(loss), float((logits.argmax(1) == target[1][indices]).sum())))
    return [np.array(result) for result in results]


def measure(options: Sequence[str], shots: int) -> dict[str, NDArray[np.float64]]:
    """Returns scores and test accuracies of all configurations, each (draws, configurations)."""
    target, source, domain = domains(options)
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("held", "folds", "part", "all")}
    for draw in range(DRAWS):
        made = split(target[1].numpy(), 0, 0.4, shots, draw=draw, val="cv", given=domain.samples.given)
        held = made.fold(min(1, len(made.folds) - 1))
        of_val, of_test = losses_and_right(target, source, held.train, [held.val, made.test])
        rows["held"].append(of_val[:, 0] / len(held.val))
        rows["part"].append(of_test[:, 1] / len(made.test))
        pooled = sum(
            losses_and_right(target, source, made.fold(n).train, [made.fold(n).val])[0][:, 0]
            for n in range(len(made.folds))
        )
        rows["folds"].append(np.asarray(pooled) / len(made.train))
        rows["all"].append(losses_and_right(target, source, made.train, [made.test])[0][:, 1] / len(made.test))
        print(f"draw {draw + 1} of {DRAWS}", file=sys.stderr)
    classes = np.full((DRAWS, 1), len(domain.samples.classes))
    return {"classes": classes, **{name: np.array(values) for name, values in rows.items()}}


def summarise(problem: str, shots: int, measured: dict[str, NDArray[np.float64]]) -> list[dict[str, object]]:
    """Returns a row for each rule and number of draws that the choice averages over."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for rule, score, tested in zip(RULES, ("held", "folds", "folds"), ("part", "part", "all"), strict=True):
        means = measured[tested].mean(0)
        for j in (1, 5, 10):
            picks = [rng.choice(DRAWS, j, replace=False) for _ in range(RESAMPLES if j > 1 else 0)] or [
                [d] for d in range(DRAWS)
            ]
            chosen = [int(measured[score][pick].mean(0).argmin()) for pick in picks]
            regrets = 100 * (means.max() - means[chosen])
            # Of draws, not of resamples: leave each draw out in turn (the jackknife).
            left_out = [100 * (means.max() - means[int(measured[score][[d]].mean(0).argmin())]) for d in range(DRAWS)]
            se = float(np.std(left_out, ddof=1) / np.sqrt(DRAWS)) if j == 1 else float("nan")
            row = (
                problem,
                shots,
                shots * int(measured["classes"][0, 0]),
                rule,
                j,
                regrets.mean(),
                se,
                100 * means[chosen].mean(),
            )
            rows.append(dict(zip(FIELDS, row, strict=True)))
    return rows


def table(file: Path) -> str:
    rows = list(csv.DictReader(file.read_text().splitlines()))
    lines = [
        "| problem | labels | chosen by | regret, J = 1 | J = 5 | J = 10 | test accuracy, J = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["problem"], row["labels"], row["rule"]) for row in rows):
        own = {row["J"]: row for row in rows if (row["problem"], row["labels"], row["rule"]) == key}
        first = f"{float(own['1']['regret']):.2f} ± {float(own['1']['se']):.2f}"
        others = (f"{float(own[j]['regret']):.2f}" for j in ("5", "10"))
        lines.append(f"| {' | '.join(key)} | {first} | {' | '.join(others)} | {float(own['1']['accuracy']):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[5])
    parser.add_argument("problem", nargs="?")
    parser.add_argument("options", nargs="*")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    for shots in options.shots:
        measured = measure(options.options, shots)
        writer.writerows(summarise(options.problem, shots, measured))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
