"""Hydra's entry to `tlexp.sweeps` for a multirun.

Hydra looks for plugins in this namespace alone, and imports them for every command: nothing heavy belongs here.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TlexpSweeper(Sweeper):
    """Every combination of the values or, with `sweep.trials`, what Optuna suggests.

    Args:
        params: axes and values that the configuration brings; the command line's win.
        max_batch_size: an argument of Hydra's own sweeper, which this one replaces; without effect.
    """

    def __init__(self, params: dict[str, Any] | None = None, max_batch_size: int | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Receives the configuration and the task from Hydra."""
        self.given = (config, hydra_context, task_function)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the jobs that are not complete and compares all of them; returns the folder of the sweep."""
        from tlexp.sweeps import run_sweep

        return run_sweep(*self.given, self.params, arguments)
