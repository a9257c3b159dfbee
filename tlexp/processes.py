"""The processes of a job and of a sweep: how many, which cores each may use, and who owns what.

The names of all environment variables by which our processes tell each other something are here.
"""

import os
from typing import Any

from tlexp.errors import UsageError

SWEEP_OWNER = "TLEXP_SWEEP_PROCESS"  # process id of the sweep's owner; a launcher's workers inherit it
SWEEP_TOKEN = "TLEXP_SWEEP_TOKEN"  # tells the jobs of one command from those of any other
CONCURRENT_JOBS = "TLEXP_JOBS"  # how many jobs a sweep runs at once
TRACKING_URI = "TLEXP_TRACKING_URI"  # the store's address may hold a password: not for files or command lines
# What a launcher around us, or an earlier one, may have left in the environment.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
RANK_PREFIXES = ("TORCHELASTIC_", "PL_", "SLURM_", "MASTER_PORT")


def available_cores() -> int:
    """Returns the cores this process may use: those of the machine or container, shared with its siblings.

    Siblings are the ranks of its job and the jobs that a sweep runs beside it.
    """
    from joblib import cpu_count  # which imports NumPy: not for every start

    ranks, jobs = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", CONCURRENT_JOBS))
    cores: int = cpu_count()
    return max(1, cores // ranks // jobs)


def is_worker() -> bool:
    """Returns whether this process runs jobs for a sweep that another process owns."""
    return os.environ.get(SWEEP_OWNER, str(os.getpid())) != str(os.getpid())


def count_ranks(trainer: dict[str, Any]) -> int:
    """Returns how many processes `trainer.devices` asks for on this machine.

    Raises:
        UsageError: for devices that are neither a number above 0, a list nor auto.
    """
    devices = trainer.get("devices", 1)
    if isinstance(devices, list) and devices:
        return len(devices)
    if devices in ("auto", -1, "-1"):
        if trainer.get("accelerator") not in ("gpu", "cuda", "auto"):
            return 1
        import torch  # only to count GPUs

        return torch.cuda.device_count() if torch.cuda.is_available() else 1
    try:
        count = int(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise UsageError(f"trainer.devices={devices}: give a number above 0, a list of devices, or auto")
    return count


def without_rank_variables() -> dict[str, str]:
    """Returns the environment without what a launcher may have set for ranks of another group."""
    return {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES and not k.startswith(RANK_PREFIXES)}
