"""From a grid or a search space to jobs that run once, under one parent run, with a comparison at the end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from tlexp.sweep.multirun import Outcome


def answer(
    master: DictConfig, context: HydraContext, task: TaskFunction, params: dict[str, Any], arguments: Sequence[str]
) -> "dict[str, Outcome]":
    """Answers a multirun: a grid, or a search where `sweep.trials` says how many trials.

    Args:
        master: the configuration of the multirun, Hydra's own part included.
        context: Hydra's.
        task: what a job runs.
        params: axes and values that the configuration brings.
        arguments: those of the command line.

    Returns:
        How each job ended, by its key.
    """
    if master.sweep.trials is None:
        from tlexp.sweep.multirun import Multirun

        return Multirun(master, context, task).grid(params, arguments)
    from tlexp.sweep.search import Search

    return Search(master, context, task).run(params, arguments)
