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
    """

    def __init__(self, components: RunComponents) -> None:
        model, terms = components.task.model, components.task.terms
        tensors = [*model.parameters(), *(p for term in terms.values() for p in term.parameters())]
        self.parameters = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in tensors if p.requires_grad)
        self.task = components.task
        self.started = time.perf_counter()
        with suppress(OSError):  # other systems report the peak of the process's whole life
            (PROCESS / "clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def measure(self, trainer: pl.Trainer) -> dict[str, float]:
        """Returns the resources of a fit over all processes.

        `training_examples` are those of all roles that steps used, `forward_passes` those that passed through the
        backbone for it: none where its features were computed once. Memory is in MiB, the GPU's where it trains on
        one, else the process's peak.
        """
        seconds = time.perf_counter() - self.started
        work = self.task.work
        counts = torch.tensor([work.seen, work.passed, work.seen_before], dtype=torch.float64)
        seen, passed, before = trainer.strategy.reduce(
            counts.to(trainer.strategy.root_device), reduce_op="sum"
        ).tolist()
        usage = {
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "steps": trainer.global_step,
            "training_examples": seen,
            "forward_passes": passed,
            "fit_seconds": seconds,
            "examples_per_second": (seen - before) / seconds,
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
