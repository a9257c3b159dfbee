"""Data sets of torchvision by name, downloaded once, by one process, and used only when they are complete."""

import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tlexp.data.images.sources import ImageFiles, PixelArray
from tlexp.data.samples import Samples
from tlexp.errors import UsageError

TIMEOUT = 20.0  # seconds that a server may stay silent


def torchvision_set(
    dataset: str,
    name: str,
    folder: str,
    parts: Mapping[str, Mapping[str, Any]],
    classes: Sequence[object] | None = None,
    download: bool = True,
    on_bad: str = "error",
) -> Samples:
    """Reads a data set of torchvision with its published splits.

    Args:
        dataset: the name of its class in `torchvision.datasets`.
        name: for reports.
        folder: holds it in torchvision's layout; where there is no such folder it is downloaded into one.
        parts: for `train` and, where it has them, `val` and `test`, the arguments that torchvision takes for it.
        classes: keeps these classes only, in this order.
        download: whether it may be downloaded.
        on_bad: `error` refuses images that cannot be read, `skip` leaves them out and lists them.

    Raises:
        UsageError: for a name that torchvision does not have, or data that are neither there nor can be downloaded.
    """
    from torchvision import datasets

    if dataset not in datasets.__all__:
        raise UsageError(f"dataset={dataset}: torchvision has no data set of that name")

    def build(path: Path, **options: Any) -> dict[str, Any]:
        return {split: getattr(datasets, dataset)(str(path), **given, **options) for split, given in parts.items()}

    path = Path(folder)
    _ensure_downloaded(dataset, path, build, download)
    try:
        sets = build(path)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        remedy = f"give a folder that holds it, or remove this one to download it ({' '.join(str(error).split())})"
        raise UsageError(f"folder={folder}: holds no {dataset} in torchvision's layout; {remedy}") from error
    contents = [_content(dataset, split) for split in sets.values()]
    labels = [
        _class_name(split, number, name)
        for (_, numbers), split in zip(contents, sets.values(), strict=True)
        for number in numbers
    ]
    splits = [split for split, (_, numbers) in zip(sets, contents, strict=True) for _ in numbers]
    inputs: Any
    if isinstance(contents[0][0], np.ndarray):
        inputs = PixelArray(np.concatenate([pixels for pixels, _ in contents]))
    else:
        inputs = ImageFiles(tuple(Path(path) for paths, _ in contents for path in paths), folder)
    return Samples.from_labels(name, inputs, labels, splits if len(sets) > 1 else None, classes, on_bad=on_bad)


def _ensure_downloaded(dataset: str, folder: Path, build: Callable[..., Any], download: bool) -> None:
    """Downloads the data set unless its folder is there: one process downloads, the others wait for all of it."""
    if folder.is_dir():
        return
    if not download:
        raise UsageError(f"folder={folder}: no such folder, and download=false")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder={folder}: cannot be created ({error.strerror}); give another one") from error
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return
        unfinished = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a download that was killed
        try:
            unfinished.mkdir()
            with _timeout():
                build(unfinished, download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = " ".join(str(error).split())[:200]
            remedy = "check the network, or give folder= with a copy in torchvision's layout"
            raise UsageError(f"{dataset}: is not in {folder} and cannot be downloaded ({reason}); {remedy}") from error
        unfinished.rename(folder)


@contextmanager
def _timeout() -> Iterator[None]:
    """Limits how long a connection may stay silent; torchvision sets no limit of its own."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def _content(dataset: str, split: Any) -> tuple[Any, list[int]]:
    """Returns the pixels (n, height, width, channels) or the files of a data set, and its labels, reading no image.

    Its own `__getitem__` would decode every image just to count them, so the attributes behind it are used.
    """
    for pairs in ("samples", "_samples"):
        if hasattr(split, pairs):
            paths, labels = zip(*getattr(split, pairs), strict=True)
            return paths, list(labels)
    held = (getattr(split, key) for key in ("targets", "labels", "_labels") if hasattr(split, key))
    numbers: Any = next(held, None)
    for files in ("_image_files", "_images"):
        if hasattr(split, files) and numbers is not None:
            return getattr(split, files), list(numbers)
    if hasattr(split, "data") and numbers is not None:
        pixels = np.asarray(split.data)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        pixels = pixels.transpose(0, 2, 3, 1) if pixels.shape[-1] not in (1, 3) else pixels
        return np.ascontiguousarray(pixels), [int(number) for number in numbers]
    raise UsageError(f"dataset={dataset}: holds no images with one label each; choose another one")


def _class_name(split: Any, number: int, name: str) -> str:
    names = getattr(split, "classes", None)
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise UsageError(f"data set {name}: has the label {number}, but only {len(names)} classes, from 0 on")
    return str(names[number])
