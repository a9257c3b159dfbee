"""The command line: Hydra composes the configuration, `job` runs it, errors become one line and an exit code.

Exit codes: 0 done, 1 a bug, 2 a mistake of the user, 3 training diverged, 128 + n stopped by signal n.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig

from tlexp.config.load import CONF, with_trainer_options
from tlexp.error_lines import is_expected, one_line
from tlexp.errors import JobFailedError, UsageError
from tlexp.file_names import check_encoding
from tlexp.help import help_text, program_name, wants_help
from tlexp.job import run_in_hydra
from tlexp.signals import Stopped


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float:
    """Runs one job; of a multirun each."""
    try:
        return run_in_hydra(cfg)
    except JobFailedError:
        raise
    except Exception as error:  # Hydra would add a line of its own
        raise SystemExit(report_error(error)) from error


def main(entry: Callable[[], object] = job, description: str | None = None) -> None:
    """Entry point of `python run.py` and of the command `tlexp`; a script has its own `entry` and `description`."""
    # Hydra would print its own errors over several lines; with this set it raises them, and they become one line here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = with_trainer_options(sys.argv[1:])
    try:
        check_encoding(str(Path.cwd()), *sys.argv[1:])
        if wants_help(sys.argv[1:]):
            print(description or help_text(program_name(sys.argv[0]), sys.argv[1:]))
        else:
            entry()
    except Stopped as stop:
        print(f"tlexp: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Prints an error: one line for what users can act on, the traceback for a bug. Returns the exit code."""
    if not is_expected(error):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    print(f"tlexp: {one_line(error)}", file=sys.stderr)
    return getattr(error, "exit_code", UsageError.exit_code)
