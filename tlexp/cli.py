"""The command line: Hydra composes the configuration, `experiment.run` answers it, errors become one line."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlexp import config as configuration
from tlexp.errors import Diverged, JobFailed, UsageError
from tlexp.stopping import Stopped, stop_signals

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
# In a wheel the options lie inside the package, in a checkout beside it.
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())

SWEEP_PROCESS = "TLEXP_SWEEP_PROCESS"  # the process that owns a sweep; a launcher's workers inherit it

ConfigStore.instance().store("schema", configuration.Config)


def answer(cfg: DictConfig) -> float:
    """Runs one job and returns its score, which is what a sweeper optimises."""
    config = configuration.load(cfg, root=Path(hydra.utils.get_original_cwd()))
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    if config.resume is not None:
        config = as_it_was(config, folder)
    from tlexp import report  # torch only once there is something to train
    from tlexp.experiment import run

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run(config, folder)
    if in_worker() and config.trainer.get("devices") == 1:
        from torch.cuda import device_count

        from tlexp.sweep.devices import claim_device

        claim_device(device_count())
    with report.kept_in(folder / "report.txt"):
        return run(config, folder)


def in_worker() -> bool:
    """Whether this process runs jobs for a sweep that another one owns."""
    return os.environ.get(SWEEP_PROCESS, str(os.getpid())) != str(os.getpid())


def as_it_was(config: configuration.Config, folder: Path) -> configuration.Config:
    """Returns the configuration of an interrupted run; only its store's address may be another one.

    Raises:
        UsageError: for other options, a sweep, or a folder that is none of a run.
    """
    others = [given for given in HydraConfig.get().overrides.task if not given.startswith(("resume=", "tracking.uri="))]
    if others or HydraConfig.get().mode == RunMode.MULTIRUN:
        rule = "a run goes on as it was configured; leave the rest out"
        raise UsageError(f"resume={config.resume}: with {', '.join(others) or '-m'}: {rule}")
    if not Path(hydra.utils.get_original_cwd(), str(config.resume), "config.yaml").is_file():
        rule = "holds no config.yaml; give the folder of a run, as its report names it"
        raise UsageError(f"resume={config.resume}: {rule}")
    before = configuration.load(OmegaConf.load(folder / "config.yaml"), root=folder)  # type: ignore[arg-type]
    if any(given.startswith("tracking.uri=") for given in HydraConfig.get().overrides.task):
        before.tracking.uri = config.tracking.uri
    elif "***" in (before.tracking.uri or ""):
        raise UsageError(f"resume={config.resume}: its store's password is not kept; give tracking.uri= as well")
    return before


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float:
    """One job under Hydra: in a sweep a failure is said at once and the other jobs go on."""
    try:
        with stop_signals():  # here, since a launcher may run jobs in processes of its own
            return answer(cfg)
    except Stopped as stop:
        if not in_worker():
            raise
        raise JobFailed(str(stop), stopped=True) from None  # one job of several was stopped; the sweep goes on
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise SystemExit(explain(error)) from error
        name = cfg.tracking.run_name or f"job {HydraConfig.get().job.num}"
        log.error("%s failed: %s", name, one_line(error), exc_info=unexpected(error))
        raise JobFailed(one_line(error), unexpected(error), diverged=isinstance(error, Diverged)) from None


def main(entry: Callable[[], object] = job) -> None:
    """Entry point of `python run.py` and of the command `tlexp`; a script has an `entry` of its own."""
    # Hydra would print its own errors on several lines; with this set it hands them over to be told in one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = with_trainer_options(sys.argv[1:])
    try:
        entry()
    except Stopped as stop:
        print(f"tlexp: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        sys.exit(explain(error))


def with_trainer_options(arguments: Iterable[str]) -> list[str]:
    """Lets any argument of the Trainer be given, listed in conf/trainer or not; Hydra wants ++ for the latter."""
    return [f"++{argument}" if re.match(r"trainer\.\w", argument) else argument for argument in arguments]


def unexpected(error: BaseException) -> bool:
    """Whether the error is ours to mend rather than the user's, so that its traceback is worth showing."""
    return not isinstance(error, UsageError | CompactHydraException | OmegaConfBaseException)


def explain(error: Exception) -> int:
    """Prints an error: one line for a wrong input, the traceback for anything else. Returns the exit code."""
    if unexpected(error):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    print(f"tlexp: {one_line(error)}", file=sys.stderr)
    return getattr(error, "exit_code", 2)


def one_line(error: Exception) -> str:
    """Returns the message of an error in one line: Hydra's and OmegaConf's are laid out over several."""
    text = str(error)
    if cause := getattr(error, "__cause__", None):
        text += f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
    text = text.split("Config search path:")[0]
    if "in DataLoader worker process" in text:  # its traceback, of which the last line is the message
        text = text.strip().splitlines()[-1].split("Error: ", 1)[-1]
    key = getattr(error, "full_key", None) or re.search(r"full_key: (\S+)", text)
    key = key.group(1) if isinstance(key, re.Match) else key
    text = re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", text)
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    if found := re.search(r"Could not load '(\w+)/([^']+)'", text):  # of a list, for which Hydra names no choices
        group, option = found.groups()
        known = " ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        return f"Could not find '{group}/{option}' Available options in '{group}': {known}"
    if "To append to your config use +" in text or "is not in struct" in text or "not in 'Config'" in text:
        return f"{text.split('. To append')[0].split(' Key ')[0]}: there is no such option; --help lists them"
    if "mismatched input" in text or "no viable alternative" in text or "token recognition" in text:
        return f"{text}; a value with = or other signs needs quotes: 'key=\"value\"'"
    return f"{key}: {text}" if key and key not in text else text
