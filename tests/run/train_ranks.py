"""One rank of a group that trains several jobs one after the other; started by `torch.distributed.run`.

A process group is slow to start; all two-process comparisons share one.
"""

import os
import sys
from pathlib import Path

import torch

from tlexp.config.load import load_file
from tlexp.reporting.console import Output
from tlexp.run.build import build
from tlexp.run.train import train
from tlexp.run.trainer import make_trainer, quiet
from tlexp.tracking.mlflow_run import MLflowRun

for folder in map(Path, sys.argv[1:]):
    config = load_file(folder)
    if not os.environ.get("KEEP_RANKS"):
        train(config, folder, MLflowRun(), Output.to_screen())
        continue
    components = build(config)
    with quiet():
        trainer = make_trainer(config, folder, [], [], components.task.has_phases)
        trainer.fit(components.task, datamodule=components.data)
    torch.save(components.task.state_dict(), folder / f"rank{trainer.global_rank}.pt")
