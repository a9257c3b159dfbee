"""How fast images arrive: `python scripts/bench/input_pipeline.py [FOLDER] [--images 400] [--size 224] [--workers N]`.

One run measures, in turns and with as many workers as cores unless `--workers` says otherwise:

- decode: Pillow turns the files into pixels, in bare processes, and nothing else;
- raw: the same and the resizing and cropping of the backbone, in bare processes: the work that cannot be avoided;
- files: an epoch of the loader that decodes (`cache_gb=0`), batches of bytes arriving in the training process;
- first: an epoch with an empty cache, its filling included;
- second: the epoch after it, from the cache;
- augmented: an epoch from the cache with `augment=standard`.

Normalising is the model's work and not in any of them. The training process needs a core as well: with as many workers
as cores it takes a share of theirs.

Without FOLDER the images are random cut-outs of scikit-image's photographs at 500x375.
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
from tlexp.data.augment import Augment
from tlexp.data.cache import Cache
from tlexp.data.datamodule import LoaderOptions, TransferDataModule
from tlexp.data.domains import Domain
from tlexp.data.images.decode import convert_channels, resize_and_crop
from tlexp.data.images.sources import IMAGE_SUFFIXES, ImageFiles
from tlexp.data.samples import Samples
from tlexp.data.splits import Split
from tlexp.processes import available_cores

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "retina")


def make_images(folder: Path, n: int) -> None:
    import skimage.data

    photographs = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for index in range(n):
        whole = photographs[index % len(photographs)]
        width = int(rng.integers(200, min(whole.width, whole.height * 4 // 3)))
        left, top = rng.integers(0, whole.width - width + 1), rng.integers(0, whole.height - width * 3 // 4 + 1)
        crop = whole.crop((left, top, left + width, top + width * 3 // 4)).resize((500, 375), Image.Resampling.BICUBIC)
        crop.save(folder / f"{index:05d}.jpg", quality=90)


def initialize(files: ImageFiles, spec: InputSpec) -> None:
    """Gives a bare process what all its chunks share."""
    global FILES, SPEC
    FILES, SPEC = files, spec
    torch.set_num_threads(1)


def decode(indices: range) -> None:
    for index in indices:
        convert_channels(FILES.open(index), 3)


def raw(indices: range) -> None:
    for index in indices:
        resize_and_crop(FILES.open(index), SPEC)


def in_processes(work: Callable[[range], None], n: int, pool: ProcessPoolExecutor) -> float:
    chunks = [range(start, min(start + 8, n)) for start in range(0, n, 8)]
    before = time.perf_counter()
    list(pool.map(work, chunks))
    return n / (time.perf_counter() - before)


def loader(files: ImageFiles, spec: InputSpec, options: LoaderOptions) -> TransferDataModule:
    n = len(files)
    samples = Samples("bench", files, np.arange(n) % 2, ("a", "b"))
    few = np.arange(2)
    domain = Domain(samples, Split(np.arange(n), few, few))
    return TransferDataModule({"target": domain}, spec, 32, 0, ("target",), ("target",), options)


def epoch(data: TransferDataModule, batches: torch.utils.data.DataLoader | None = None) -> float:
    n, before = 0, time.perf_counter()
    for batch in batches if batches is not None else data.train_dataloader().iterables["target"]:
        n += len(batch.labels)
    return n / (time.perf_counter() - before)


def running(data: TransferDataModule) -> Callable[[], float]:
    """Returns epochs of a loader whose workers have started, as in every epoch of a run but the first."""
    batches = data.train_dataloader().iterables["target"]
    epoch(data, batches)
    return partial(epoch, data, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder
        if folder is None:
            folder = Path(temporary) / "images"
            folder.mkdir()
            make_images(folder, options.images)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[: options.images]
        measure(ImageFiles(tuple(paths), str(folder)), options, Path(temporary))


def measure(files: ImageFiles, options: argparse.Namespace, temporary: Path) -> None:
    spec = InputSpec(3, options.size, (0.5,) * 3, (0.25,) * 3, "bicubic", round(options.size / 0.875))
    workers, n = options.workers, len(files)
    filled = Cache(temporary / "filled", 10**11)
    streamed = running(loader(files, spec, LoaderOptions(Cache(temporary / "none", 0), workers=workers)))
    stored = running(loader(files, spec, LoaderOptions(filled)))
    varied = Augment("standard", 0.35, 1.3333, 0.5, 0.2)
    augmented = running(loader(files, spec, LoaderOptions(filled, varied, workers=workers)))

    def first() -> float:
        shutil.rmtree(temporary / "empty", ignore_errors=True)
        before = time.perf_counter()
        epoch(loader(files, spec, LoaderOptions(Cache(temporary / "empty", 10**11))))
        return n / (time.perf_counter() - before)

    with ProcessPoolExecutor(workers, get_context("fork"), initialize, (files, spec)) as pool:
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
    table = Table("what", "images/s", "range", "of raw", "of files", title=f"{n} images, {workers} workers")
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
