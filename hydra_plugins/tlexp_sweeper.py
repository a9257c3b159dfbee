"""What Hydra calls for a multirun, a few lines before `tlexp.sweep`.

Hydra looks for plugins in this namespace alone, and imports them for every command: nothing heavy belongs here.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TlexpSweeper(Sweeper):
    """Every combination of the values or, with `sweep.trials`, what Optuna suggests.

    Args:
        params: axes and values that a configuration brings; the command line's go before.
        max_batch_size: of Hydra's own sweeper, in whose place this one is; without effect.
    """

    def __init__(self, params: dict[str, Any] | None = None, max_batch_size: int | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands over."""
        self.given = (config, hydra_context, task_function)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the jobs that are not done yet and compares all of them; returns how each ended."""
        from tlexp.sweep import answer

        return answer(*self.given, self.params, arguments)
