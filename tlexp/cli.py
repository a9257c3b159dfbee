"""The command line: Hydra composes the configuration, `run.run` runs it, errors become one line and an exit code.

Exit codes: 0 done, 1 a bug, 2 a mistake of the user, 3 training diverged, 128 + n stopped by signal n.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tlexp import run_folder
from tlexp.config.load import CONF, load, load_file, with_trainer_options
from tlexp.config.schema import Config
from tlexp.errors import JobFailedError, JobsFailedError, TrainingDivergedError, UsageError
from tlexp.processes import is_worker
from tlexp.signals import Stopped, stop_signals

log = logging.getLogger(__name__)

EXPECTED = (UsageError, TrainingDivergedError, JobsFailedError, CompactHydraException, OmegaConfBaseException)


def run_job(cfg: DictConfig) -> float:
    """Runs one job and returns its score, which is what a sweeper optimises."""
    config = load(cfg, root=Path(hydra.utils.get_original_cwd()))
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    if config.resume is not None:
        config = interrupted_config(config, folder)
    from tlexp.reporting.console import report_in  # torch only once there is something to train
    from tlexp.run.run import run

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run(config, folder)
    if is_worker() and config.trainer.get("devices") == 1:
        from torch.cuda import device_count

        from tlexp.sweep.devices import claim_device

        claim_device(device_count())
    with report_in(folder / run_folder.REPORT) as output:
        return run(config, folder, output)


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
    return original


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float:
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
            raise SystemExit(report_error(error)) from error
        name = cfg.tracking.run_name or f"job {HydraConfig.get().job.num}"
        unexpected = not isinstance(error, EXPECTED)
        log.error("%s failed: %s", name, one_line(error), exc_info=unexpected)
        diverged = isinstance(error, TrainingDivergedError)
        raise JobFailedError(one_line(error), unexpected, diverged=diverged) from None


def main(entry: Callable[[], object] = job) -> None:
    """Entry point of `python run.py` and of the command `tlexp`; a script has its own `entry`."""
    # Hydra would print its own errors over several lines; with this set it raises them, and they become one line here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = with_trainer_options(sys.argv[1:])
    try:
        entry()
    except Stopped as stop:
        print(f"tlexp: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Prints an error: one line for what users can act on, the traceback for a bug. Returns the exit code."""
    if not isinstance(error, EXPECTED):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    print(f"tlexp: {one_line(error)}", file=sys.stderr)
    return getattr(error, "exit_code", UsageError.exit_code)


def one_line(error: Exception) -> str:
    """Returns the message of an error as one line; those of Hydra and OmegaConf span several."""
    text = str(error)
    if cause := getattr(error, "__cause__", None):
        text += f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
    text = text.split("Config search path:")[0]
    if "in DataLoader worker process" in text:  # the worker's traceback, whose last line is the message
        text = text.strip().splitlines()[-1].split("Error: ", 1)[-1]
    key = getattr(error, "full_key", None) or re.search(r"full_key: (\S+)", text)
    key = key.group(1) if isinstance(key, re.Match) else key
    text = re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", text)
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    if match := re.search(
        r"Could not load '(\w+)/([^']+)'", text
    ):  # in a list of options, where Hydra names no choices
        group, option = match.groups()
        known = " ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        return f"Could not find '{group}/{option}' Available options in '{group}': {known}"
    if "To append to your config use +" in text or "is not in struct" in text or "not in 'Config'" in text:
        return f"{text.split('. To append')[0].split(' Key ')[0]}: no such option; --help lists them"
    if "mismatched input" in text or "no viable alternative" in text or "token recognition" in text:
        return f"{text}; a value with = or other special characters needs quotes: 'key=\"value\"'"
    return f"{key}: {text}" if key and key not in text else text
