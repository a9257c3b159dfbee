"""One job as Hydra starts it, for a command or for a sweep."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tlexp import run_folder
from tlexp.config.load import load, load_file
from tlexp.config.schema import Config
from tlexp.error_lines import is_expected, one_line
from tlexp.errors import FolderInUseError, JobFailedError, RankFailedError, TrainingDivergedError, UsageError
from tlexp.processes import is_worker
from tlexp.signals import Stopped, stop_signals
from tlexp.sqlite_address import sqlite_file

log = logging.getLogger(__name__)


def run_job(cfg: DictConfig) -> float:
    """Runs one job and returns its score, which is what a sweeper optimises."""
    config = load(cfg, root=Path(hydra.utils.get_original_cwd()))
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    if config.resume is not None:
        config = interrupted_config(config, folder)
    from tlexp.reporting.console import report_in  # torch only once there is something to train
    from tlexp.runs.run import run

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run(config, folder).score
    if is_worker() and config.trainer.get("devices") == 1:
        from torch.cuda import device_count

        from tlexp.sweeps.devices import claim_device

        claim_device(device_count())
    with report_in(folder / run_folder.REPORT) as output:
        return run(config, folder, output).score


def interrupted_config(config: Config, folder: Path) -> Config:
    """Returns the configuration of an interrupted run; only the address of its store may change.

    Raises:
        UsageError: for other options, a sweep, or a folder that is not a run's.
    """
    others = [given for given in HydraConfig.get().overrides.task if not given.startswith(("resume=", "tracking.uri="))]
    if others or HydraConfig.get().mode == RunMode.MULTIRUN:
        remedy = "a run resumes with its own configuration; leave other options out"
        raise UsageError(f"resume={config.resume}: with {', '.join(others) or '-m'}: {remedy}")
    if not Path(hydra.utils.get_original_cwd(), str(config.resume), run_folder.CONFIG).is_file():
        remedy = f"contains no {run_folder.CONFIG}; give the folder of a run, as its report shows it"
        raise UsageError(f"resume={config.resume}: {remedy}")
    original = load_file(folder)
    if any(given.startswith("tracking.uri=") for given in HydraConfig.get().overrides.task):
        return original.with_tracking_uri(config.tracking.uri)
    if "***" in (original.tracking.uri or ""):
        raise UsageError(f"resume={config.resume}: the store's password was not saved; give tracking.uri= as well")
    if (file := sqlite_file(original.tracking.uri or "")) and not file.parent.is_dir():  # which would be created anew
        remedy = "is gone; move the run back to where it was, or give tracking.uri= as well"
        raise UsageError(f"resume={config.resume}: the folder of its database {file} {remedy}")
    return original


def run_in_hydra(cfg: DictConfig) -> float:
    """Runs one job under Hydra: in a sweep a failure is reported at once and the other jobs continue."""
    try:
        with stop_signals():  # here, since a launcher may run jobs in its own processes
            return run_job(cfg)
    except Stopped as stop:
        if not is_worker():
            raise
        raise JobFailedError(str(stop), stopped=True) from None  # one of several jobs was stopped; the sweep continues
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        if isinstance(error, FolderInUseError):  # another sweep has this job too, and this one waits for it
            raise JobFailedError(str(error), in_use=True) from None
        name = cfg.tracking.run_name or f"job {HydraConfig.get().job.num}"
        log.error("%s failed: %s", name, one_line(error), exc_info=not is_expected(error))
        unexpected = not is_expected(error) or isinstance(error, RankFailedError)
        diverged = isinstance(error, TrainingDivergedError)
        raise JobFailedError(one_line(error), unexpected, diverged=diverged) from None
