"""How fast pictures come: `python scripts/bench/input_pipeline.py [FOLDER] [--images 400] [--size 224] [--workers N]`.

One run measures, in turns and with as many workers as cores unless `--workers` says otherwise:

- decode: Pillow turns the files into pixels, in bare processes, and nothing else;
- raw: the same and the resizing and cropping of the backbone, in bare processes: the work that cannot be avoided;
- files: an epoch of the loader that decodes (`cache_gb=0`), batches of bytes arriving in the training process;
- first: an epoch with an empty cache, its filling included;
- second: the epoch after it, from the cache;
- augmented: an epoch from the cache with `augment=standard`.

Normalising is the model's work and not in any of them. The training process needs a core as well: with as many workers
as cores it takes a share of theirs.

Without FOLDER the pictures are random cut-outs of scikit-image's photographs at 500x375.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tlexp.backbones.base import InputSpec
from tlexp.cache import Cache, cores
from tlexp.data.augment import Augment
from tlexp.data.decode import channelled, fitted
from tlexp.data.domain import Domain
from tlexp.data.images import ENDINGS, ImageFiles
from tlexp.data.pair import Reading, TransferData
from tlexp.data.samples import Samples
from tlexp.data.splits import Split

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "retina")


def make_pictures(folder: Path, n: int) -> None:
    import skimage.data

    photographs = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    chance = np.random.default_rng(0)
    for place in range(n):
        whole = photographs[place % len(photographs)]
        width = int(chance.integers(200, min(whole.width, whole.height * 4 // 3)))
        left, top = chance.integers(0, whole.width - width + 1), chance.integers(0, whole.height - width * 3 // 4 + 1)
        part = whole.crop((left, top, left + width, top + width * 3 // 4)).resize((500, 375), Image.Resampling.BICUBIC)
        part.save(folder / f"{place:05d}.jpg", quality=90)


def hand_over(files: ImageFiles, spec: InputSpec) -> None:
    """Gives a bare process its work once, rather than with each of its parts."""
    global FILES, SPEC
    FILES, SPEC = files, spec
    torch.set_num_threads(1)


def decode(places: range) -> None:
    for place in places:
        channelled(FILES.opened(place), 3)


def raw(places: range) -> None:
    for place in places:
        fitted(FILES.opened(place), SPEC)


def in_processes(work: Callable[[range], None], n: int, pool: ProcessPoolExecutor) -> float:
    parts = [range(start, min(start + 8, n)) for start in range(0, n, 8)]
    before = time.perf_counter()
    list(pool.map(work, parts))
    return n / (time.perf_counter() - before)


def loader(files: ImageFiles, spec: InputSpec, reading: Reading) -> TransferData:
    n = len(files)
    samples = Samples("bench", files, np.arange(n) % 2, ("a", "b"))
    few = np.arange(2)
    return TransferData(Domain(samples, Split(np.arange(n), few, few)), None, spec, 32, 0, reading=reading)


def epoch(data: TransferData, batches: torch.utils.data.DataLoader | None = None) -> float:
    n, before = 0, time.perf_counter()
    for batch in batches if batches is not None else data.train_dataloader().iterables["target"]:
        n += len(batch.labels)
    return n / (time.perf_counter() - before)


def running(data: TransferData) -> Callable[[], float]:
    """Returns epochs of a loader whose workers have started, as in every epoch of a run but the first."""
    batches = data.train_dataloader().iterables["target"]
    epoch(data, batches)
    return partial(epoch, data, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder
        if folder is None:
            folder = Path(temporary) / "pictures"
            folder.mkdir()
            make_pictures(folder, options.images)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)[: options.images]
        measure(ImageFiles(tuple(paths), str(folder)), options, Path(temporary))


def measure(files: ImageFiles, options: argparse.Namespace, temporary: Path) -> None:
    spec = InputSpec(3, options.size, (0.5,) * 3, (0.25,) * 3, "bicubic", round(options.size / 0.875))
    workers, n = options.workers, len(files)
    filled = Cache(temporary / "filled", 10**11)
    streamed = running(loader(files, spec, Reading(Cache(temporary / "none", 0), workers=workers)))
    stored = running(loader(files, spec, Reading(filled)))
    varied = Augment("standard", 0.35, 1.3333, 0.5, 0.2)
    augmented = running(loader(files, spec, Reading(filled, varied, workers=workers)))

    def first() -> float:
        shutil.rmtree(temporary / "empty", ignore_errors=True)
        before = time.perf_counter()
        epoch(loader(files, spec, Reading(Cache(temporary / "empty", 10**11))))
        return n / (time.perf_counter() - before)

    with ProcessPoolExecutor(workers, get_context("fork"), hand_over, (files, spec)) as pool:
        ways = {
            "decode": partial(in_processes, decode, n, pool),
            "raw": partial(in_processes, raw, n, pool),
            "files": streamed,
            "first": first,
            "second": stored,
            "augmented": augmented,
        }
        ways["decode"](), ways["raw"]()
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                speeds[name].append(way())
    show(speeds, n, workers)


def show(speeds: dict[str, list[float]], n: int, workers: int) -> None:
    table = Table("what", "images/s", "range", "of raw", "of files", title=f"{n} pictures, {workers} workers")
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        # Ratios are of the same round, since the machine may be busier in another.
        ratios = [
            statistics.median(ours / theirs for ours, theirs in zip(values, speeds[other], strict=True))
            for other in ("raw", "files")
        ]
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        table.add_row(name, f"{middle[name]:,.0f}", span, *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
