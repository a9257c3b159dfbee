"""The resources that a run uses: trainable parameters, time, examples per second, memory."""

import time
from contextlib import suppress
from pathlib import Path

import pytorch_lightning as pl
import torch

from tlexp.training.setup import RunComponents

PROCESS = Path("/proc/self")


class ResourceMeter:
    """Measures from its construction to `measure`, each job of a sweep by itself; of a resumed run the part since then.

    Args:
        components: built and not yet trained.
        first_epoch: the epoch that comes next.
    """

    def __init__(self, components: RunComponents, first_epoch: int = 0) -> None:
        model, terms, data = components.task.model, components.task.terms, components.data
        tensors = [*model.parameters(), *(p for term in terms.values() for p in term.parameters())]
        self.parameters = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in tensors if p.requires_grad)
        # Of each role in a step, as many examples as the target has.
        self.examples_per_epoch = data.domains["target"].sizes()["train"] * len(data.train_roles)
        self.first_epoch = first_epoch
        self.started = time.perf_counter()
        with suppress(OSError):  # other systems report the peak of the process's whole life
            (PROCESS / "clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def measure(self, trainer: pl.Trainer) -> dict[str, float]:
        """Returns the resources of a fit; memory in MiB, the GPU's where it trains on one, else the process's peak."""
        seconds = time.perf_counter() - self.started
        epochs = trainer.current_epoch - self.first_epoch
        usage = {
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "fit_seconds": seconds,
            "examples_per_second": epochs * self.examples_per_epoch / seconds,
        }
        on_gpu = trainer.strategy.root_device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _peak_of_process()
        return usage | ({} if peak is None else {"peak_memory_mib": peak})


def _peak_of_process() -> float | None:
    with suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
