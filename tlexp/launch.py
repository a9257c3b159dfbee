"""Several processes for one job, started from the job's resolved configuration.

Lightning's own launcher runs the original command line again, `-m` included: in a sweep the other ranks would then
train other values. Here the process that Hydra knows never joins a group; it starts the ranks and waits.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from tlexp import config as configuration
from tlexp.errors import UsageError

# What a launcher around us, or an earlier one, may have left in the environment.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
RANK_PREFIXES = ("TORCHELASTIC_", "PL_", "SLURM_", "MASTER_PORT")
# The store's address may hold a password, which neither a file nor a command line should.
TRACKING = "TLEXP_TRACKING_URI"
GRACE_SECONDS = 45.0  # the launcher itself gives its processes 30


def processes(trainer: dict[str, Any]) -> int:
    """Returns how many processes `trainer.devices` asks for on this machine."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        on_gpu = trainer.get("accelerator") in ("gpu", "cuda", "auto") and torch.cuda.is_available()
        return torch.cuda.device_count() if on_gpu else 1
    try:
        return int(devices)
    except (TypeError, ValueError):
        raise UsageError(f"trainer.devices={devices}: give a number, a list of devices, or auto") from None


def run_ranks(folder: Path, count: int, run_id: str, uri: str | None) -> None:
    """Trains the job of `folder` in `count` processes and waits for all of them.

    Raises:
        RuntimeError: if any of them fails; the others are then ended.
    """
    scrubbed = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES and not k.startswith(RANK_PREFIXES)}
    scrubbed[TRACKING] = uri or ""
    scrubbed.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    package = str(Path(__file__).parent.parent)
    scrubbed["PYTHONPATH"] = os.pathsep.join(filter(None, (package, *sys.path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "tlexp.launch", str(folder), run_id]
    # A session of their own: a Ctrl-C reaches this process alone, and it ends all of them.
    ranks = subprocess.Popen(command, env=scrubbed, start_new_session=True)
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
        raise RuntimeError(f"a process of this job failed (exit code {code}); its own message stands above")


class SameConfig(pl.Callback):
    """Refuses to train where the processes of a group hold different configurations."""

    def __init__(self, key: str) -> None:
        self.key = key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares the configuration's hash over all ranks.

        Raises:
            RuntimeError: on every rank, naming the hashes.
        """
        if trainer.world_size > 1:
            keys: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(keys, self.key)
            if len(set(keys)) > 1:
                raise RuntimeError(f"the processes of this job train different configurations: {', '.join(keys)}")


def main(folder: Path, run_id: str) -> None:
    """One rank: reads the job's configuration and trains."""
    from tlexp import experiment, tracking
    from tlexp.stopping import stop_signals

    config = configuration.load(OmegaConf.load(folder / "config.yaml"), root=folder)  # type: ignore[arg-type]
    config.tracking.uri = os.environ.get(TRACKING) or None
    try:
        with stop_signals():
            experiment.train(config, folder, tracking.attached(config, run_id))
    except UsageError as error:
        if os.environ["RANK"] == "0":
            print(f"tlexp: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
