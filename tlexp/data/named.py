"""Data sets that torchvision knows by name, downloaded once by one process and taken as complete only when they are."""

import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tlexp.data.images import ImageFiles, PixelArray
from tlexp.data.samples import Samples, labelled
from tlexp.errors import UsageError

SECONDS = 20.0  # that a server may stay silent


def torchvision_set(
    dataset: str,
    name: str,
    folder: str,
    parts: Mapping[str, Mapping[str, Any]],
    classes: Sequence[object] | None = None,
    download: bool = True,
    on_bad: str = "error",
) -> Samples:
    """Reads a data set of torchvision with the splits that it is published with.

    Args:
        dataset: the name of its class in `torchvision.datasets`.
        name: what reports call it.
        folder: where it lies, as torchvision lays it out; where there is no such folder it is downloaded into one.
        parts: for `train` and, where it has them, `val` and `test`, the arguments that torchvision takes for it.
        classes: keeps these classes only, in this order.
        download: whether it may be downloaded.
        on_bad: `error` refuses images that cannot be read, `skip` leaves them out and says so.

    Raises:
        UsageError: for a name that torchvision does not have, or data that are not there and cannot be had.
    """
    from torchvision import datasets

    if dataset not in datasets.__all__:
        raise UsageError(f"dataset={dataset}: torchvision has no data set of that name")

    def build(place: Path, **options: Any) -> dict[str, Any]:
        return {part: getattr(datasets, dataset)(str(place), **given, **options) for part, given in parts.items()}

    place = Path(folder)
    _downloaded(dataset, place, build, download)
    try:
        sets = build(place)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        rule = f"give a folder that holds it, or remove this one to download it ({' '.join(str(error).split())})"
        raise UsageError(f"folder={folder}: holds no {dataset} as torchvision lays it out; {rule}") from error
    pieces = [_content(dataset, part) for part in sets.values()]
    labels = [
        _class(found, number, name)
        for (_, numbers), found in zip(pieces, sets.values(), strict=True)
        for number in numbers
    ]
    of_part = [part for part, (_, numbers) in zip(sets, pieces, strict=True) for _ in numbers]
    inputs: Any
    if isinstance(pieces[0][0], np.ndarray):
        inputs = PixelArray(np.concatenate([pixels for pixels, _ in pieces]))
    else:
        inputs = ImageFiles(tuple(Path(path) for paths, _ in pieces for path in paths), folder)
    return labelled(name, inputs, labels, of_part if len(sets) > 1 else None, classes, on_bad=on_bad)


def _downloaded(dataset: str, place: Path, build: Callable[..., Any], download: bool) -> None:
    """Makes sure that the folder is there: one process downloads, the others wait for all of it."""
    if place.is_dir():
        return
    if not download:
        raise UsageError(f"folder={place}: no such folder, and download=false")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder={place}: cannot be made ({error.strerror}); give another one") from error
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return
        unfinished = place.with_name(f"{place.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a download that was killed
        try:
            unfinished.mkdir()
            with _impatient():
                build(unfinished, download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = " ".join(str(error).split())[:200]
            rule = "check the network, or give folder=, where it lies as torchvision lays it out"
            raise UsageError(f"{dataset}: is not in {place} and cannot be downloaded ({reason}); {rule}") from error
        unfinished.rename(place)


@contextmanager
def _impatient() -> Iterator[None]:
    """Lets no connection wait for ever: torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _content(dataset: str, found: Any) -> tuple[Any, list[int]]:
    """Returns the pixels (n, height, width, channels) or the files of a data set, and its labels, reading no image.

    Its own `__getitem__` would decode every picture just to count them, so the attributes behind it are used.
    """
    for pairs in ("samples", "_samples"):
        if hasattr(found, pairs):
            paths, of_each = zip(*getattr(found, pairs), strict=True)
            return paths, list(of_each)
    held = (getattr(found, key) for key in ("targets", "labels", "_labels") if hasattr(found, key))
    numbers: Any = next(held, None)
    for files in ("_image_files", "_images"):
        if hasattr(found, files) and numbers is not None:
            return getattr(found, files), list(numbers)
    if hasattr(found, "data") and numbers is not None:
        pixels = np.asarray(found.data)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        pixels = pixels.transpose(0, 2, 3, 1) if pixels.shape[-1] not in (1, 3) else pixels
        return np.ascontiguousarray(pixels), [int(number) for number in numbers]
    raise UsageError(f"dataset={dataset}: holds no images with one label each; choose another one")


def _class(found: Any, number: int, name: str) -> str:
    names = getattr(found, "classes", None)
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise UsageError(f"data set {name}: has the label {number}, but only {len(names)} classes, from 0 on")
    return str(names[number])
