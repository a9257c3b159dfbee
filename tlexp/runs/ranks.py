"""The processes of a job with several: torch's agent, which starts them, and one rank.

python -m tlexp.runs.ranks FOLDER MLFLOW_RUN_ID [COUNT]
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 3.0  # for what a process still does after another one has failed


def agent(folder: Path, run_id: str, count: int) -> None:
    """Starts the ranks and waits for them; a failure is handed on in one line, not repeated at length."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from tlexp import run_folder
    from tlexp.errors import RankFailedError
    from tlexp.runs.launch_ranks import write_failure

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "tlexp.runs.ranks", str(folder), run_id])
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        how = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
        hint = "; perhaps memory was short" if failure.exitcode == -signal.SIGKILL else ""
        if failure.exitcode < 0:  # what others have reported meanwhile is that it left them
            (folder / run_folder.RANK_FAILURE).unlink(missing_ok=True)
        write_failure(folder, RankFailedError, f"process {number} of this job was ended {how}{hint}")
        sys.exit(1)


def rank(folder: Path, run_id: str) -> None:
    """Trains the job of a folder as one of its processes."""
    import torch

    from tlexp.config.load import load_file
    from tlexp.processes import TRACKING_URI
    from tlexp.reporting.console import Output
    from tlexp.runs.launch_ranks import report_failure
    from tlexp.runs.train import train
    from tlexp.signals import stop_signals
    from tlexp.tracking.runs import attach_run

    config = load_file(folder).with_tracking_uri(os.environ.get(TRACKING_URI) or None)
    number = int(os.environ["RANK"])
    records = number == 0  # the others need no connection, nor MLflow's import
    threading.Thread(target=_end_with_others, args=(folder,), daemon=True).start()
    try:
        with stop_signals():
            train(config, folder, attach_run(config, run_id if records else ""), Output.to_screen())
            # Its threads end in order; left to the interpreter's exit they now and then abort the process.
            torch.distributed.destroy_process_group()
    except Exception as error:
        report_failure(folder, number, error)
        sys.exit(getattr(error, "exit_code", 1))


def _end_with_others(folder: Path) -> None:
    """Ends this process soon after another one has failed, for which it may be waiting in a call that never returns."""
    from tlexp import run_folder

    while not (folder / run_folder.RANK_FAILURE).exists():
        time.sleep(1)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]), sys.argv[2])
    else:
        agent(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
