"""Several processes for one job, started from the job's resolved configuration.

Lightning's own launcher runs the original command line again, `-m` included: in a sweep the other ranks would then
train other values. Here the process that Hydra knows never joins a process group; it starts the ranks and waits.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from tlexp import run_folder
from tlexp.errors import RankFailedError, TrainingDivergedError, UsageError
from tlexp.processes import TRACKING_URI, without_rank_variables
from tlexp.tracking.mlflow_run import first_line

GRACE_SECONDS = 45.0  # torch's launcher itself gives its processes 30
ERRORS = {error.__name__: error for error in (UsageError, TrainingDivergedError, RankFailedError)}


def run_ranks(folder: Path, count: int, run_id: str, uri: str | None) -> None:
    """Trains the job of `folder` in `count` processes and waits for all of them.

    Raises:
        UsageError, TrainingDivergedError: where the ranks report one.
        RankFailedError: if any of them fails otherwise; the others are then ended.
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
            raise ERRORS[content["error"]](content["message"])
        raise RankFailedError(f"the processes of this job ended with exit code {code}")


def report_failure(folder: Path, rank: int, error: Exception) -> None:
    """Tells the process that started the ranks what went wrong; a bug's traceback goes to the job's log.

    Of several ranks the first is heard: when it fails, the others do because of it.
    """
    for expected in (TrainingDivergedError, UsageError):
        if isinstance(error, expected):
            write_failure(folder, expected, str(error))
            return
    log = folder / run_folder.LOG
    with log.open("a") as file:
        file.write(f"process {rank} failed\n{''.join(traceback.format_exception(error))}")
    reason = f"{type(error).__name__}: {first_line(error)}"
    write_failure(folder, RankFailedError, f"process {rank} of this job failed ({reason}); its traceback is in {log}")


def write_failure(folder: Path, kind: type[Exception], message: str) -> None:
    """Writes what went wrong, unless another process was first."""
    with suppress(FileExistsError), (folder / run_folder.RANK_FAILURE).open("x") as file:
        json.dump({"error": kind.__name__, "message": message}, file)
