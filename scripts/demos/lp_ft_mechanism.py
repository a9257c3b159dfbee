"""Why a linear probe comes before fine-tuning, where theory says what must happen (Kumar et al. 2022).

    python scripts/demos/lp_ft_mechanism.py [--seeds 20] > docs/results/lp_ft_mechanism.csv
    python scripts/demos/lp_ft_mechanism.py --table docs/results/lp_ft_mechanism.csv

A network of two linear layers, 20 inputs to 3 features to 1 output, is to find w = B^T v from 40 examples that lie in a
10-dimensional subspace. The pretrained first layer is B itself, or B with noise of size eps, made orthonormal again.
Fine-tuning from a random head fits the examples by turning the first layer inside their subspace alone, which spoils it
outside; from the head of a linear probe there is little left to turn. Errors are squared: `id` inside the subspace,
`ood` in all directions.

Strategies, model and optimizer groups are those of every run; the loop is full-batch gradient descent in double
precision to a residual of 1e-14, whose thousands of steps of a microsecond each are no work for a training framework.
"""

import argparse
import csv
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from tlexp.backbones.base import InputSpec, Stage, group_stages
from tlexp.config.instantiate import build
from tlexp.config.load import CONF
from tlexp.models.transfer_model import TransferModel
from tlexp.training.optim import parameter_groups

INPUTS, FEATURES, EXAMPLES, SUBSPACE = 20, 3, 40, 10
LR, RESIDUAL, CONVERGED, MAX_STEPS = 0.02, 1e-14, 1e-28, 100_000  # CONVERGED: squared norm of the gradient
NOISE = (0.0, 0.02, 0.1)
PROBE = 20_000  # maximum steps of the probe
FIELDS = ("eps", "strategy", "seed", "id", "ood", "steps")
METHODS = {
    "linear_probe": ("strategy=linear_probe",),
    "finetune": ("strategy=finetune", "strategy.backbone_lr_mult=1"),
    "lp_ft": ("strategy=lp_ft", "strategy.backbone_lr_mult=1", f"strategy.probe_epochs={PROBE}"),
    "scratch": ("strategy=scratch",),
}


class LinearMap(nn.Module):
    """A backbone that is a matrix (features, inputs)."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.name, self.num_features = "linear_map", len(matrix)
        self.input = InputSpec(1, 1, (0.0,), (1.0,))
        self.weight = nn.Parameter(matrix.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs) to (batch, features)."""
        return x @ self.weight.T

    def stages(self) -> list[Stage]:
        """One stage."""
        return group_stages(self, {"weight": "stem"}, ["stem"])


def orthonormal(rows: int, columns: int, around: Tensor | None = None, noise: float = 1.0) -> Tensor:
    matrix = noise * torch.randn(rows, columns)
    return torch.linalg.qr((matrix if around is None else around + matrix).T)[0].T


@cache
def strategy(method: str) -> Any:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=list(METHODS[method])).strategy


def train(method: str, noise: float, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    truth, v = orthonormal(FEATURES, INPUTS), torch.randn(FEATURES)
    wanted, subspace = truth.T @ v, orthonormal(SUBSPACE, INPUTS)
    x = torch.randn(EXAMPLES, SUBSPACE) @ subspace
    y = x @ wanted
    pretrained = orthonormal(FEATURES, INPUTS, truth, noise) if noise else truth
    start, head = orthonormal(FEATURES, INPUTS) if method == "scratch" else pretrained, torch.randn(FEATURES)
    model = TransferModel(LinearMap(start), {"target": 1}, seed)
    output: Any = model.heads["target"]
    with torch.no_grad():
        output.weight.copy_(head[None])
        output.bias.zero_()
    transfer = build("strategy", strategy(method))
    transfer.prepare(model)
    optimizer = torch.optim.SGD(parameter_groups(model, transfer, LR, range(PROBE + 1)), lr=LR)
    epoch = step = 0
    trained: set[str] = set()
    for step in range(MAX_STEPS):
        if transfer.trainable(epoch) != trained:
            trained = set(transfer.trainable(epoch))
            model.set_trainable(trained)
            output.bias.requires_grad_(False)  # the truth has none
        loss = (model(x)[:, 0] - y).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        converged = sum(p.grad.pow(2).sum().item() for p in model.parameters() if p.grad is not None) < CONVERGED
        if loss.item() < RESIDUAL:
            break
        if converged and transfer.trainable(epoch) == transfer.trainable(PROBE):
            break
        if converged or step == PROBE:
            epoch = PROBE  # the probe has converged or used up its steps: next phase, if there is one
            continue
        optimizer.step()
    with torch.no_grad():
        error = (output.weight @ model.backbone.weight)[0] - wanted
    return {"id": (subspace @ error).pow(2).sum().item(), "ood": error.pow(2).sum().item(), "steps": step}


def table(file: Path) -> str:
    with file.open() as content:
        rows = list(csv.DictReader(content))
    errors: dict[tuple[float, str], dict[str, tuple[float, float]]] = {}
    for row in rows:
        group = errors.setdefault((float(row["eps"]), row["strategy"]), {})
        group[row["seed"]] = float(row["id"]), float(row["ood"])
    lines = [
        "| noise | strategy | error inside | error outside | lp_ft better outside | p |",
        "|---|---|---|---|---|---|",
    ]
    for (noise, method), by_seed in errors.items():
        inside, outside = (statistics.mean(pair[index] for pair in by_seed.values()) for index in (0, 1))
        better, p = "", ""
        if method != "lp_ft":
            best = errors[noise, "lp_ft"]
            pairs = [(best[seed][1], by_seed[seed][1]) for seed in by_seed if best[seed] != by_seed[seed]]
            wins = sum(ours < theirs for ours, theirs in pairs)
            better = f"{wins} of {len(by_seed)}"
            p = f"{binomtest(wins, len(pairs)).pvalue:.2g}" if pairs else ""
        lines.append(f"| {noise:g} | {method} | {inside:.2g} | {outside:.2g} | {better} | {p} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    torch.set_default_dtype(torch.float64)
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    for noise in NOISE:
        for method in METHODS:
            for seed in range(options.seeds):
                writer.writerow({"eps": noise, "strategy": method, "seed": seed, **train(method, noise, seed)})


if __name__ == "__main__":
    main()
