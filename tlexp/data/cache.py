"""The cache on disk, shared by all jobs and processes: decoded images, token ids, frozen features, facts about files.

Everything in it can be computed again, so the folder may be deleted at any time. An entry is a folder with a lock
beside it: one process computes while the others wait. Pixels and tensors reach the disk before anything refers to them,
so a process that is killed leaves no entry that looks complete but is not.
"""

import json
import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from tlexp.errors import UsageError
from tlexp.processes import available_cores

log = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 256  # results that are written to disk together
VALUE_BYTES = 200  # approximate size of a plain value in a ledger
UNUSABLE = (OSError, sqlite3.Error)  # raised by a folder that is read-only, full, or no folder at all


def _in_threads(description: str, work: Callable[[int], T], indices: Sequence[int]) -> Iterator[dict[int, T]]:
    """Yields the results of `work` chunk by chunk; Pillow releases the GIL while it decodes, so threads are enough."""
    chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
    hidden = len(chunks) < 2 or not sys.stdout.isatty()
    with ThreadPoolExecutor(available_cores()) as pool:
        for chunk in track(chunks, description, transient=True, disable=hidden):
            yield dict(zip(chunk, pool.map(work, chunk), strict=True))


class Ledger:
    """Plain values by name in a file; each is stored as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as db:
            db.execute("create table if not exists entries (name text primary key, value text)")

    def read(self) -> dict[str, Any]:
        """Returns everything."""
        with closing(sqlite3.connect(self.path)) as db:
            return {name: json.loads(value) for name, value in db.execute("select name, value from entries")}

    def clear(self) -> None:
        """Removes everything."""
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("delete from entries")

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds values, or replaces them."""
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        with closing(sqlite3.connect(self.path)) as db, db:
            db.executemany("insert or replace into entries values (?, ?)", rows)


@dataclass(frozen=True)
class Pixels:
    """Images stored one after the other in a memory-mapped file.

    Attributes:
        flat: uint8 of shape (bytes,), each image as (height, width, channels).
        extents: int64 of shape (n, 3): the offset, height and width of each image.
        frames: how many frames each file has.
        brightest: the largest value of grey images of more than eight bits, of 255; 255 if there are others.
    """

    flat: NDArray[np.uint8]
    extents: NDArray[np.int64]
    frames: list[int]
    brightest: int


class Decoded(NamedTuple):
    """An image as it is stored.

    Attributes:
        pixels: uint8 (height, width, channels).
        frames: how many frames its file has.
        brightest: the largest value of a grey image of more than eight bits, of 255; else 255.
    """

    pixels: NDArray[np.uint8]
    frames: int
    brightest: int


@dataclass(frozen=True)
class Cache:
    """A folder of entries whose total size stays near a limit: the least recently used entries make room.

    A folder that cannot be used costs time, never the run: a warning names what has to be computed again.

    Attributes:
        folder: its location.
        limit: bytes of all entries together.
    """

    folder: Path
    limit: int

    def make_room(self, need: int, keep: Path) -> bool:
        """Removes the least recently used entries until about `need` more bytes fit; false where they do not.

        A process that has an entry open keeps reading it: the disk frees the file when the last reader closes it.
        """
        entries = {path: _measured(path) for path in self.folder.glob("*/*") if path.is_dir()}
        sizes = {path: size for path, (size, _) in entries.items()}
        if sizes.get(keep, 0) + need > self.limit:
            return False
        for path in sorted(sizes.keys() - {keep}, key=lambda path: entries[path][1]):
            if sum(sizes.values()) + need <= self.limit:
                break
            try:
                with FileLock(f"{path}.lock", timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
                del sizes[path]
            except Timeout:
                continue  # another process is writing to it, so it is in use
        return sum(sizes.values()) + need <= self.limit

    def tensors(
        self,
        kind: str,
        key: str,
        compute: Callable[[], dict[str, Tensor]],
        is_valid: Callable[[dict[str, Tensor]], bool] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the stored tensors, or computes and stores them where there are none that are valid."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        try:
            with self._entry(kind, key) as path:
                file = path / "tensors.safetensors"
                if file.exists():
                    stored = load_file(file)
                    if is_valid is None or is_valid(stored):
                        return stored
                computed = compute()
                if self.make_room(sum(tensor.nbytes for tensor in computed.values()), path):
                    temporary = file.with_suffix(".tmp")
                    save_file(computed, temporary)
                    temporary.replace(file)
                return computed
        except (*UNUSABLE, SafetensorError) as error:
            self._warn(error, f"{kind} are computed again in every run")
            return compute()

    def values(
        self,
        kind: str,
        key: str,
        names: Sequence[str],
        compute: Callable[[int], Any],
        description: str,
        permanent: Callable[[Any], bool],
    ) -> list[Any]:
        """Returns a plain value for each name, computing those that are not stored yet.

        Args:
            kind: the kind of entry.
            key: the entry's key.
            names: names of the values.
            compute: maps an index into `names` to its value.
            description: the label of the progress bar.
            permanent: whether a value can never change, and so is worth storing.
        """
        try:
            with self._entry(kind, key) as path:
                ledger = Ledger(path / "ledger.sqlite")
                known = ledger.read()
                missing = [index for index, name in enumerate(names) if name not in known]
                self.make_room(VALUE_BYTES * len(missing), path)
                for chunk in _in_threads(description, compute, missing):
                    new = {names[index]: value for index, value in chunk.items()}
                    ledger.add({name: value for name, value in new.items() if permanent(value)})
                    known |= new
            return [known[name] for name in names]
        except UNUSABLE as error:
            self._warn(error, "images are inspected again in every run")
            chunks = _in_threads(description, compute, range(len(names)))
            return [value for chunk in chunks for value in chunk.values()]

    def pixels(
        self,
        key: str,
        names: Sequence[str],
        decode: Callable[[int], Decoded | UsageError],
        size: int,
        description: str,
    ) -> Pixels | None:
        """Returns images, decoding those that are not stored yet.

        Args:
            key: where the images come from and how they are preprocessed.
            names: a name for each image that changes with its content.
            decode: maps an index into `names` to pixels, or to why there are none.
            size: approximate bytes of one image.
            description: the label of the progress bar.

        Returns:
            None where they do not fit into the cache or onto the disk.

        Raises:
            UsageError: for the first image that cannot be decoded, with the number of others; the rest is stored.
        """
        try:
            with self._entry("images", key) as path:
                return self._pixels(path, names, decode, size, description)
        except UNUSABLE as error:
            self._warn(error, "images are decoded again in every epoch")
            return None

    def _pixels(
        self,
        path: Path,
        names: Sequence[str],
        decode: Callable[[int], Decoded | UsageError],
        size: int,
        description: str,
    ) -> Pixels | None:
        ledger, file = Ledger(path / "ledger.sqlite"), path / "pixels"
        known: dict[str, list[int]] = ledger.read()
        end = _end(known)
        if end > (file.stat().st_size if file.exists() else 0):
            known, end = _emptied(ledger, file)  # files were removed by hand
        missing = [index for index, name in enumerate(names) if name not in known]
        if not self.make_room(size * len(missing), path):
            if known.keys() <= set(names):
                return None
            known, end = _emptied(ledger, file)  # perhaps most of it are files that have changed since
            missing = list(range(len(names)))
            if not self.make_room(size * len(missing), path):
                return None
        errors: list[UsageError] = []
        for chunk in _in_threads(description, decode, missing):
            errors += [result for result in chunk.values() if isinstance(result, UsageError)]
            new = {}
            with file.open("r+b" if file.exists() else "wb") as pixels:
                pixels.seek(end)
                for index, image in chunk.items():
                    if isinstance(image, Decoded):
                        new[names[index]] = [end, *image.pixels.shape, image.frames, image.brightest]
                        pixels.write(image.pixels.tobytes())
                        end += image.pixels.nbytes
                pixels.flush()
                os.fsync(pixels.fileno())
            ledger.add(new)
            known |= new
        if errors:
            others = f"; and {len(errors) - 1} more; run tlexp-check-data to list them" if errors[1:] else ""
            raise UsageError(f"{errors[0]}{others}")
        rows = np.array([known[name] for name in names], np.int64).reshape(-1, 6)
        # Mapped while the lock is held: nobody can remove the file before it is.
        return Pixels(np.memmap(file, np.uint8, "r"), rows[:, :3], rows[:, 4].tolist(), int(rows[:, 5].max(initial=0)))

    @contextmanager
    def _entry(self, kind: str, key: str) -> Iterator[Path]:
        """Gives an entry's folder to one process at a time and marks it as just used."""
        path = self.folder / kind / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            path.mkdir(exist_ok=True)
            os.utime(path)
            yield path

    def _warn(self, error: Exception, consequence: str) -> None:
        log.warning("cache=%s: cannot be used (%s); %s", self.folder, error, consequence)


def _end(known: Mapping[str, Sequence[int]]) -> int:
    return max((start + height * width * channels for start, height, width, channels, *_ in known.values()), default=0)


def _emptied(ledger: Ledger, file: Path) -> tuple[dict[str, list[int]], int]:
    """Resets an entry to a new file, so that a process with the old one open keeps reading the old pixels."""
    ledger.clear()
    file.unlink(missing_ok=True)
    return {}, 0


def _measured(path: Path) -> tuple[int, float]:
    """Returns an entry's size in bytes and the time of its last use; zero where another process has just removed it."""
    try:
        return sum(file.stat().st_size for file in path.iterdir()), path.stat().st_mtime
    except FileNotFoundError:
        return 0, 0.0
