"""What a run costs: parameters that train, time, examples a second, memory."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch

if TYPE_CHECKING:
    from tlexp.assemble import Parts

PROCESS = Path("/proc/self")


class Cost:
    """Measures from its construction to `of`; a job of a sweep is measured by itself, not with those before it.

    Of a run that goes on after an interruption it is the part since then.

    Args:
        parts: assembled and not yet trained.
        first_epoch: that comes now.
    """

    def __init__(self, parts: "Parts", first_epoch: int = 0) -> None:
        model, terms = parts.task.model, parts.task.terms
        tensors = [*model.parameters(), *(p for term in terms.values() for p in term.parameters())]
        self.parameters = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in tensors if p.requires_grad)
        # Of each domain that a step sees, as many examples as the target has.
        self.an_epoch = parts.data.domains["target"].sizes()["train"] * len(parts.data.train_on)
        self.first_epoch = first_epoch
        self.started = time.perf_counter()
        with suppress(OSError):  # other systems keep the peak of the process's whole life
            (PROCESS / "clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def of(self, trainer: pl.Trainer) -> dict[str, float]:
        """Returns the costs of a fit; memory in MiB, the GPU's where there is one, else the process's peak."""
        seconds = time.perf_counter() - self.started
        epochs = trainer.current_epoch - self.first_epoch
        spent = {
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "fit_seconds": seconds,
            "examples_per_second": epochs * self.an_epoch / seconds,
        }
        on_gpu = trainer.strategy.root_device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _peak_of_process()
        return spent | ({} if peak is None else {"peak_memory_mib": peak})


def _peak_of_process() -> float | None:
    with suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
