"""One rank of a group that trains several jobs one after the other; started by `torch.distributed.run`.

A process group is slow to start; all two-process comparisons share one.
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from tlexp import config as configuration
from tlexp import experiment
from tlexp.tracking import Record

for folder in map(Path, sys.argv[1:]):
    config = configuration.load(OmegaConf.load(folder / "config.yaml"), root=folder)  # type: ignore[arg-type]
    experiment.train(config, folder, Record())
