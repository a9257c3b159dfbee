"""The checkpoints of a sweep: how much room they take, and which of them stay."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.metric_names import higher_is_better
from tlexp.sweeps.points import GridPoint


class CheckpointKeeper:
    """Removes checkpoints that `sweep.keep` does not ask for, as soon as that is known.

    Only those of jobs that this sweep has run: what it found done may belong to another one.

    Args:
        config: of the sweep. `sweep.keep` is `all`; `best`, of each method on each problem the job with the best
            validation value; or `none`.

    Attributes:
        compared: the axes that tell methods and problems apart.
    """

    def __init__(self, config: Config) -> None:
        self._keep, self._sign = config.sweep.keep, 1 if higher_is_better(config.monitor) else -1
        self.compared: Sequence[str] = ()
        self._best: dict[tuple[str, ...], tuple[float, Path]] = {}
        self._removable: set[Path] = set()

    def add(self, points: Iterable[GridPoint], folder: Path, score: float, own: bool) -> None:
        """Takes account of a complete job and removes what is then not wanted.

        Args:
            points: the grid points that have its result.
            folder: of the job.
            score: its best validation value.
            own: whether this sweep has run it.
        """
        if self._keep == "all":
            return
        if own:
            self._removable.add(folder)
        for point in points if self._keep == "best" else ():
            group = tuple(point.values[axis] for axis in self.compared)
            self._best[group] = max(self._best.get(group, (-float("inf"), folder)), (self._sign * score, folder))
        for path in self._removable - {best for _, best in self._best.values()}:
            (path / run_folder.BEST_CHECKPOINT).unlink(missing_ok=True)
            self._removable.discard(path)


_known_sizes: dict[str, int] = {}  # by the options of a backbone, since a search asks before each trial


def expected_size(jobs: Sequence[GridPoint], keep: str, folder: Path) -> str:
    """Returns in words how much room the checkpoints of some jobs take; empty where that is not known.

    Args:
        jobs: those that will run.
        keep: which of them stay.
        folder: where they are, for a warning if its disk has less room.
    """
    if keep == "none" or not jobs:
        return ""
    backbones = [json.dumps(job.config.backbone, sort_keys=True) for job in jobs]
    for key, job in zip(backbones, jobs, strict=True):
        if key not in _known_sizes:
            _known_sizes[key] = backbone_bytes(job.config)
    total = sum(_known_sizes[key] for key in backbones)
    if not total:
        return ""
    if keep == "best":
        return f"checkpoints of about {in_units(total / len(jobs))} each, of which the best stay"
    text = f"checkpoints of about {in_units(total)}"
    if total > (free := free_bytes(folder)):
        return f"{text}, but only {in_units(free)} are free; sweep.keep=best or none keeps fewer"
    return text


def backbone_bytes(config: Config) -> int:
    """Returns the size of a backbone's tensors, which is built without their memory; 0 where that is not possible."""
    import torch

    from tlexp.runs.build import build_backbone

    try:
        with torch.device("meta"):
            backbone: Any = build_backbone(config, {})
        return sum(tensor.numel() * tensor.element_size() for tensor in backbone.state_dict().values())
    except Exception:  # not every network can be built so; whatever is wrong is reported by its job
        return 0


def free_bytes(folder: Path) -> int:
    """Returns the free space of the disk that a folder is on or will be on."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def in_units(size: float) -> str:
    """Returns a number of bytes with a unit, such as `1.2 GB`."""
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
    raise AssertionError("the last unit returns")
