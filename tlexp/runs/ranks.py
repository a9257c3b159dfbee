"""The processes of a job with several: torch's agent, which starts them, and one rank.

python -m tlexp.runs.ranks FOLDER MLFLOW_RUN_ID [COUNT]
"""

import logging
import os
import sys
from pathlib import Path


def agent(folder: Path, run_id: str, count: int) -> None:
    """Starts the ranks and waits for them; a failure that a rank has reported is not repeated at length."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from tlexp import run_folder

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "tlexp.runs.ranks", str(folder), run_id])
    except ChildFailedError:
        if not (folder / run_folder.RANK_FAILURE).exists():
            raise
        sys.exit(2)


def rank(folder: Path, run_id: str) -> None:
    """Trains the job of a folder as one of its processes."""
    from tlexp.config.load import load_file
    from tlexp.errors import TrainingDivergedError, UsageError
    from tlexp.processes import TRACKING_URI
    from tlexp.reporting.console import Output
    from tlexp.runs.launch_ranks import report_failure
    from tlexp.runs.train import train
    from tlexp.signals import stop_signals
    from tlexp.tracking.runs import attach_run

    config = load_file(folder).with_tracking_uri(os.environ.get(TRACKING_URI) or None)
    records = os.environ["RANK"] == "0"  # the others need no connection, nor MLflow's import
    try:
        with stop_signals():
            train(config, folder, attach_run(config, run_id if records else ""), Output.to_screen())
    except (UsageError, TrainingDivergedError) as error:
        report_failure(folder, error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]), sys.argv[2])
    else:
        agent(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
