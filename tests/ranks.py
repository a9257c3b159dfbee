"""One rank of a group that trains several jobs one after the other; started by `torch.distributed.run`.

A process group is slow to start; all two-process comparisons share one.
"""

import os
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from tlexp import config as configuration
from tlexp import experiment
from tlexp.assemble import assemble
from tlexp.tracking import Record

for folder in map(Path, sys.argv[1:]):
    config = configuration.load(OmegaConf.load(folder / "config.yaml"), root=folder)  # type: ignore[arg-type]
    if not os.environ.get("KEEP_RANKS"):
        experiment.train(config, folder, Record())
        continue
    parts = assemble(config)
    with experiment.quiet():
        trainer = experiment.make_trainer(config, folder, [], parts.task.phased)
        trainer.fit(parts.task, datamodule=parts.data)
    torch.save(parts.task.state_dict(), folder / f"rank{trainer.global_rank}.pt")
