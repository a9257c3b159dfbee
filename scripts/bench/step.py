"""What a training step costs beside a bare PyTorch loop: `python scripts/bench/step.py [--backbone NAME] [KEY=VALUE]`.

Both train the same network on the same batches, in turns: `tlexp` through Lightning with everything a run does in a
step (named random streams, objective, training metrics, schedule, progress bar off), and a loop of forward, loss,
backward, optimizer and schedule, fed by the same loader. Images are the bundled digits at `--size`, in memory;
validation is in neither. Seconds are those of an epoch, the first of which warms up and does not count.

    python scripts/bench/step.py --backbone resnet18 --size 64 --batch 32 --rounds 3
    python scripts/bench/step.py --backbone resnet50 --size 224 --batch 64 trainer.accelerator=gpu
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from tlexp.config.load import CONF, load, with_trainer_options
from tlexp.config.schema import Config
from tlexp.runs.build import build
from tlexp.runs.trainer import apply_model_options, make_trainer, quiet
from tlexp.training.setup import RunComponents

EPOCHS = 3


class Clock(pl.Callback):
    """Takes the seconds of each training epoch, without what follows its last step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts with the first batch."""
        if batch_idx == 0:
            wait()
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *rest: Any) -> None:
        """Stops after the last one."""
        if rest[-1] == trainer.num_training_batches - 1:
            wait()
            self.seconds.append(time.perf_counter() - self.started)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(config: Config, run: RunComponents) -> float:
    clock = Clock()
    with quiet(), TemporaryDirectory() as folder:
        apply_model_options(run.task.model, config.trainer)
        make_trainer(config, Path(folder), [clock], [], run.task.has_phases).fit(run.task, datamodule=run.data)
    return statistics.median(clock.seconds[1:])


def bare(config: Config, run: RunComponents) -> float:
    """A loop that does nothing but train: the same loader, network, layout and precision, AdamW and a cosine."""
    gpu = torch.cuda.is_available() and config.trainer["accelerator"] in ("gpu", "cuda", "auto")
    device = torch.device("cuda" if gpu else "cpu")
    model = copy.deepcopy(run.task.model).to(device).train()
    layout = torch.channels_last if config.trainer.get("channels_last") else torch.contiguous_format
    if layout == torch.channels_last:
        model.to(memory_format=layout)
    half = config.trainer.get("precision") == "bf16-mixed"
    loader = run.data.train_dataloader().iterables["target"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    mean, std = (
        torch.tensor(v, device=device).view(-1, 1, 1) for v in (model.backbone.input.mean, model.backbone.input.std)
    )
    seconds = []
    for _ in range(EPOCHS):
        for index, batch in enumerate(loader):
            if index == 0:
                wait()
                started = time.perf_counter()
            x = batch.inputs.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
            x = x.contiguous(memory_format=layout)  # decoded images are contiguous
            labels = batch.labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = F.cross_entropy(model.heads["target"](model.backbone(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    data = ["data=named", "dataset@data.target=digits", f"data.target.size={given.size}", "data.test_fraction=0.2"]
    fixed = [
        "init=random",
        "tracking=none",
        "trainer.enable_progress_bar=false",
        "strategy=full_transfer",
        f"epochs={EPOCHS}",
    ]
    shape = [f"backbone={given.backbone}", f"backbone.size={given.size}", f"batch_size={given.batch}"]
    quiet = ["trainer.limit_val_batches=1", "trainer.check_val_every_n_epoch=3"]
    with TemporaryDirectory() as cache, hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        arguments = [*data, *fixed, *shape, *quiet, f"cache={cache}", *given.overrides]
        config = load(hydra.compose("config", overrides=with_trainer_options(arguments)), Path.cwd())
        run = build(config)
        run.data.train_dataloader()  # decodes, once
        rows = [(bare(config, run), ours(config, build(config))) for _ in range(given.rounds)]
    table = Table(
        "round", "bare loop, s", "tlexp, s", "ratio", title=f"{given.backbone} {given.size}, batch {given.batch}"
    )
    for number, (theirs, mine) in enumerate(rows, 1):
        table.add_row(str(number), f"{theirs:.3f}", f"{mine:.3f}", f"{mine / theirs:.3f}")
    console = Console(width=100)
    console.print(table)
    ratios = sorted(mine / theirs for theirs, mine in rows)
    console.print(
        f"ratio: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}; {run.data.steps} steps"
    )


if __name__ == "__main__":
    main()
