"""What a finished run left in its folder, to look at from Python."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tlexp import run_folder
from tlexp.reporting.html import figure_html, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: of the run.
    """

    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All that `metrics.json` holds."""
        return run_folder.read_metrics(self.folder)

    @property
    def score(self) -> float:
        """The best validation value of the monitored metric, that of the checkpoint kept."""
        return float(self.metrics["score"])

    @property
    def checkpoint(self) -> Path:
        """The file of the checkpoint kept."""
        return self.folder / run_folder.BEST_CHECKPOINT

    def predictions(self, role: str = "target") -> pd.DataFrame:
        """Returns the kept checkpoint's logits on validation and test, a row for each example.

        Columns are `split`, `id`, `label` (a class) and `logit/CLASS` for each class.

        Raises:
            FileNotFoundError: for a role that was not evaluated, or a run with `predictions=false`.
        """
        return pd.read_parquet(self.folder / run_folder.predictions(role))

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row for each epoch, counted from 0, with its training and validation metrics; none before the first."""
        return pd.DataFrame(run_folder.read_history(self.folder) or {"epoch": []}).set_index("epoch")

    def table(self) -> pd.DataFrame:
        """Returns validation and test metrics: a row for each `domain/metric`, NaN where one is not measured."""
        splits = ("val", "test")
        values = run_folder.numbers(self.metrics)
        names = dict.fromkeys(name.partition("/")[2] for name in values if name.split("/")[0] in splits)
        rows = {name: {split: values.get(f"{split}/{name}", float("nan")) for split in splits} for name in names}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["val", "test"])

    def figures(self) -> "dict[str, Figure]":
        """Returns the confusion matrix of the target's test and the learning curves."""
        from tlexp.reporting import figures

        counts = np.array(self.metrics["confusion_matrix"])
        classes = tuple(self.metrics["data"]["target"]["classes"])
        curves = figures.learning_curves(run_folder.read_history(self.folder), self.metrics["best_epoch"])
        return {"confusion_matrix": figures.confusion_matrix(counts, classes), "learning_curves": curves}

    def _repr_html_(self) -> str:
        """Shows the table and the figures in a notebook."""
        return table_html(self.table()) + "".join(figure_html(figure) for figure in self.figures().values())
