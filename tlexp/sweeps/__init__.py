"""From a grid or a search space to jobs that run once, under one MLflow run, with a comparison at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


def run_sweep(
    master: DictConfig, context: HydraContext, task: TaskFunction, params: dict[str, Any], arguments: Sequence[str]
) -> Path:
    """Runs a multirun: a grid, or a search where `sweep.trials` gives the number of trials.

    Args:
        master: the configuration of the multirun, Hydra's own part included.
        context: Hydra's.
        task: what a job runs.
        params: axes and values that the configuration brings.
        arguments: those of the command line.

    Returns:
        The folder of the sweep.

    Raises:
        UsageError: before any job, for a mistake in the sweep.
        JobsFailedError: at the end, where jobs failed.
    """
    from tlexp.sweeps.driver import SweepDriver
    from tlexp.sweeps.grid import Grid
    from tlexp.sweeps.points import Composer, parse_overrides
    from tlexp.sweeps.search import Search

    spec = parse_overrides(context.config_loader, params, arguments)
    composer = Composer(context.config_loader, master, spec)
    proposer = Grid(composer) if master.sweep.trials is None else Search(composer)
    return SweepDriver(master, context, task, composer).run(proposer)
