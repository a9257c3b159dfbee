"""What `import tlexp` offers, on the functions that the command line uses.

A mistake is a `UsageError`, a ValueError whose message is one line: that of the command, where there is one.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.initialize import get_gh_backup, restore_gh_from_backup

from tlexp.config.load import CONF, load, search_path, with_trainer_options
from tlexp.config.schema import Config
from tlexp.error_lines import is_expected, one_line
from tlexp.errors import JobsFailedError, TrainingDivergedError, UsageError
from tlexp.job import run_in_hydra
from tlexp.metric_names import TEST_METRICS
from tlexp.signals import Stopped, stop_signals

if TYPE_CHECKING:
    from tlexp.comparison.comparison import Comparison
    from tlexp.reporting.console import Output
    from tlexp.runs.run_result import RunResult

Folder = str | Path


def compose(overrides: Sequence[str] = (), config_dir: Folder | None = None, root: Folder = ".") -> Config:
    """Composes and checks the configuration of one run, as `python run.py OVERRIDES` does.

    Change it by overrides, not by assignment: values that follow from others are set already.

    Args:
        overrides: as on the command line, such as `strategy=finetune` and `alpha=0.5`.
        config_dir: a folder with options of your own, as `--config-dir`.
        root: what relative paths of the configuration are relative to.

    Raises:
        UsageError: for an unknown option, a wrong type, or a value outside its range.
    """
    with _one_line(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=_overrides(overrides, config_dir))
        return load(cfg, Path(root).absolute())


def run(config: Config, folder: Folder | None = None, output: "Output | None" = None) -> "RunResult":
    """Runs one configuration, unless its folder holds the result already.

    Args:
        config: of `compose`.
        folder: where the run's files go; None for a new one in `outputs/runs`. A run resumes in the folder it had.
        output: where reports go; None for the screen.

    Raises:
        UsageError: for a mistake, before training starts.
        TrainingDivergedError: after training, where the monitored metric is never finite.
        KeyboardInterrupt: where it is stopped; what it has finished is kept.
    """
    if config.resume is not None:
        raise UsageError(f"resume={config.resume}: give that folder to tlexp.run, with the configuration the run had")
    from tlexp.runs.run import run

    new = Path("outputs/runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    with _one_line(), _interruptible():
        return run(config, Path(new if folder is None else folder).absolute(), output)


def sweep(overrides: Sequence[str], config_dir: Folder | None = None) -> "Comparison":
    """Runs every combination of the values given, or a search with `sweep.trials=`, as `python run.py -m OVERRIDES`.

    Jobs that are complete are not run again: the same call after an interruption runs the rest.

    Args:
        overrides: as on the command line; axes have several values, such as `alpha=0,0.5` or `seed=range(5)`.
        config_dir: a folder with options of your own, as `--config-dir`.

    Raises:
        UsageError: before any job, for a mistake in the sweep.
        JobsFailedError: at the end, where jobs failed; the others are finished.
        KeyboardInterrupt: where it is stopped; finished jobs are kept.
    """
    with _one_line(), _interruptible(), _own_hydra():
        multirun = Hydra.create_main_hydra2("tlexp", create_config_search_path(str(CONF)))
        folder = multirun.multirun(
            config_name="config",
            task_function=run_in_hydra,
            overrides=[*_overrides(overrides, config_dir), "hydra.mode=MULTIRUN"],
            with_log_configuration=False,
        )
    return compare(folder)


def compare(
    *sweeps: Folder,
    methods: Sequence[str] | None = None,
    baseline: str | None = None,
    metric: str | None = None,
) -> "Comparison":
    """Compares a finished sweep again, optionally by another metric, baseline or methods; several as one method each.

    Args:
        sweeps: folders, such as `outputs/sweeps/NAME`.
        methods: axes that are compared; None for the sweep's own.
        baseline: what the others are compared with, such as `strategy=scratch`; None for the sweep's own.
        metric: what is reported, such as `test/target/macro_f1`; None for the sweep's own.

    Raises:
        UsageError: for a folder that does not hold a sweep, or what the sweep cannot answer.
    """
    from tlexp.comparison.comparison import Comparison
    from tlexp.comparison.results import read_comparison, side_by_side, with_questions

    if not sweeps:
        raise UsageError("compare: give the folder of a sweep, such as outputs/sweeps/NAME")
    if isinstance(methods, str):
        raise UsageError(f"methods={methods}: give a list of axes, such as ['{methods}']")
    if metric is not None and metric not in TEST_METRICS:
        raise UsageError(f"metric={metric}: choose one of {', '.join(TEST_METRICS)}")
    read = [read_comparison(Path(folder)) for folder in sweeps]
    manifest, metrics = read[0] if len(read) == 1 else side_by_side(read)
    asked = {"baseline": baseline, "metric": metric, "methods": None if methods is None else list(methods)}
    return Comparison(with_questions(manifest, asked), metrics)


def _overrides(overrides: Sequence[str], config_dir: Folder | None) -> list[str]:
    if isinstance(overrides, str):
        raise UsageError(f"{overrides}: give a list of overrides, such as ['alpha=0.5']")
    return [*search_path(config_dir), *with_trainer_options(overrides)]


@contextmanager
def _one_line() -> Iterator[None]:
    """Turns errors of Hydra and OmegaConf, and those that span several lines, into one line of ours."""
    try:
        yield
    except (TrainingDivergedError, JobsFailedError):
        raise
    except Exception as error:
        if not is_expected(error):
            raise
        if isinstance(error, UsageError) and "\n" not in str(error):
            raise
        raise UsageError(one_line(error)) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets a signal stop a run or a sweep in order, as the command line does, and end as Python's own interruption."""
    try:
        with stop_signals():
            yield
    except Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from None


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Lets Hydra run within a program that may use it itself, and gives back the program's logging."""
    backup, config = get_gh_backup(), HydraConfig.instance().cfg
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        restore_gh_from_backup(backup)
        HydraConfig.instance().cfg = config
        root.handlers[:] = handlers
        root.setLevel(level)
