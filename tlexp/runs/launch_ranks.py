"""Several processes for one job, started from the job's resolved configuration.

Lightning's own launcher runs the original command line again, `-m` included: in a sweep the other ranks would then
train other values. Here the process that Hydra knows never joins a process group; it starts the ranks and waits.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tlexp import run_folder
from tlexp.errors import TrainingDivergedError, UsageError
from tlexp.processes import TRACKING_URI, without_rank_variables

GRACE_SECONDS = 45.0  # torch's launcher itself gives its processes 30
EXPECTED_ERRORS = {error.__name__: error for error in (UsageError, TrainingDivergedError)}


def run_ranks(folder: Path, count: int, run_id: str, uri: str | None) -> None:
    """Trains the job of `folder` in `count` processes and waits for all of them.

    Raises:
        UsageError, TrainingDivergedError: where the ranks report one.
        RuntimeError: if any of them fails otherwise; the others are then ended.
    """
    environment = {**without_rank_variables(), TRACKING_URI: uri or ""}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, *sys.path)))
    failure = folder / run_folder.RANK_FAILURE
    failure.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tlexp.runs.ranks", str(folder), run_id, str(count)]
    # A session of their own: a Ctrl-C reaches this process alone, and it ends all of them.
    ranks = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = ranks.wait()
    except BaseException:
        ranks.terminate()
        try:
            ranks.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(ranks.pid, signal.SIGKILL)
        raise
    if code:
        if failure.exists():
            content = json.loads(failure.read_text())
            failure.unlink()
            raise EXPECTED_ERRORS[content["error"]](content["message"])
        raise RuntimeError(f"a process of this job failed (exit code {code}); see its error message above")


def report_failure(folder: Path, error: UsageError | TrainingDivergedError) -> None:
    """Tells the process that started the ranks what went wrong; of several ranks that fail the last one is heard."""
    kind = TrainingDivergedError if isinstance(error, TrainingDivergedError) else UsageError
    content = {"error": kind.__name__, "message": str(error)}
    run_folder.write_atomically(folder / run_folder.RANK_FAILURE, json.dumps(content))
