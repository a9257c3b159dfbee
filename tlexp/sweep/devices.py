"""A GPU for each of the processes that run a sweep's jobs side by side; left alone, all would take the first."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from tlexp.cache import JOBS
from tlexp.cli import SWEEP_PROCESS

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[FileLock] = []  # for as long as this process lives


def claim_device(count: int) -> None:
    """Lets this process see one GPU alone, its own among the processes of a sweep; with one or none nothing changes.

    Processes beyond the number of GPUs share them evenly.

    Args:
        count: of the GPUs that this process sees.
    """
    if _held or count < 2:
        return
    visible = os.environ.get(VISIBLE, ",".join(map(str, range(count)))).split(",")
    for slot in range(int(os.environ[JOBS])):
        lock = FileLock(Path(tempfile.gettempdir()) / f"tlexp-{os.environ[SWEEP_PROCESS]}-{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _held.append(lock)
        os.environ[VISIBLE] = visible[slot % len(visible)]
        return
