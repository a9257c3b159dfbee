"""A GPU for each of the processes that run a sweep's jobs side by side; without it all would use the first."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from tlexp.processes import CONCURRENT_JOBS, SWEEP_OWNER

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[FileLock] = []  # for as long as this process lives


def claim_device(count: int) -> None:
    """Restricts this process to one GPU, different from its siblings'; with one GPU or none nothing changes.

    Processes beyond the number of GPUs share them evenly.

    Args:
        count: number of GPUs that this process sees.
    """
    if _held or count < 2:
        return
    visible = os.environ.get(VISIBLE, ",".join(map(str, range(count)))).split(",")
    for slot in range(int(os.environ[CONCURRENT_JOBS])):
        lock = FileLock(Path(tempfile.gettempdir()) / f"tlexp-{os.environ[SWEEP_OWNER]}-{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _held.append(lock)
        os.environ[VISIBLE] = visible[slot % len(visible)]
        return
