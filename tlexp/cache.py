"""What is computed once for all jobs and processes: decoded pictures, token ids, facts about files.

All of it can be computed again, so the folder may be deleted at any time. An entry has a folder, and beside it a lock:
of several processes one computes and the others wait. Pixels are on disk before the ledger that names them, so a
process that is killed leaves nothing that looks complete and is not.
"""

import hashlib
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
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from joblib import cpu_count
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from tlexp.errors import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")
AT_A_TIME = 256  # results that are written, and are then safe, together
VALUE_BYTES = 200  # of a plain value in a ledger, about
UNUSABLE = (OSError, sqlite3.Error)  # of a folder: read-only, full, not a folder at all


JOBS = "TLEXP_JOBS"  # how many a sweep runs at once


def cores() -> int:
    """Returns the cores that this process may use: the machine's or the container's, shared with others of its kind.

    These are the ranks of its job and the jobs that a sweep runs beside it.
    """
    available: int = cpu_count()
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // int(os.environ.get(JOBS, "1")))


def digest(*parts: bytes | str) -> str:
    """Returns 32 hexadecimal digits that depend on every byte of the parts and on where one ends."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "big"))
        state.update(content)
    return state.hexdigest()


def _in_threads(what: str, work: Callable[[int], T], places: Sequence[int]) -> Iterator[dict[int, T]]:
    """Yields `work` of some places at a time; Pillow decodes outside of Python's lock, so threads are enough."""
    chunks = [places[start : start + AT_A_TIME] for start in range(0, len(places), AT_A_TIME)]
    hidden = len(chunks) < 2 or not sys.stdout.isatty()
    with ThreadPoolExecutor(cores()) as pool:
        for chunk in track(chunks, what, transient=True, disable=hidden):
            yield dict(zip(chunk, pool.map(work, chunk), strict=True))


class Ledger:
    """Plain values by name in a file, each there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as db:
            db.execute("create table if not exists entries (name text primary key, value text)")

    def read(self) -> dict[str, Any]:
        """Returns everything."""
        with closing(sqlite3.connect(self.path)) as db:
            return {name: json.loads(value) for name, value in db.execute("select name, value from entries")}

    def clear(self) -> None:
        """Forgets everything."""
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("delete from entries")

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds values, or replaces them."""
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        with closing(sqlite3.connect(self.path)) as db, db:
            db.executemany("insert or replace into entries values (?, ?)", rows)


@dataclass(frozen=True)
class Pixels:
    """Pictures that lie one after the other in a file, mapped into memory.

    Attributes:
        flat: uint8 of shape (bytes,), each picture as (height, width, channels).
        places: int64 of shape (n, 3): where each begins, its height and its width.
    """

    flat: NDArray[np.uint8]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Cache:
    """A folder of entries that stays below a limit, about: what was used longest ago makes room.

    A folder that cannot be used costs time, never the run: it is said once for each thing that is not kept.

    Attributes:
        folder: where it lies.
        limit: bytes of all entries together.
    """

    folder: Path
    limit: int

    def make_room(self, need: int, keep: Path) -> bool:
        """Removes what was used longest ago until about `need` bytes more fit; false where they do not.

        Who has an entry open goes on reading it: the disk frees it when the last reader closes it.
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
                continue  # somebody writes to it now, so it was not used long ago
        return sum(sizes.values()) + need <= self.limit

    def tensors(
        self,
        kind: str,
        key: str,
        make: Callable[[], dict[str, Tensor]],
        holds: Callable[[dict[str, Tensor]], bool] | None = None,
    ) -> dict[str, Tensor]:
        """Returns what `make` makes, which is called where it has not been kept yet or no longer `holds`."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        try:
            with self._entry(kind, key) as path:
                file = path / "tensors.safetensors"
                if file.exists():
                    kept = load_file(file)
                    if holds is None or holds(kept):
                        return kept
                made = make()
                if self.make_room(sum(tensor.nbytes for tensor in made.values()), path):
                    unfinished = file.with_suffix(".tmp")
                    save_file(made, unfinished)
                    unfinished.replace(file)
                return made
        except (*UNUSABLE, SafetensorError) as error:
            self._complain(error, f"{kind} are computed again in every run")
            return make()

    def values(
        self,
        kind: str,
        key: str,
        names: Sequence[str],
        make: Callable[[int], Any],
        what: str,
        lasting: Callable[[Any], bool],
    ) -> list[Any]:
        """Returns a plain value for each name; `make` gets the places of those that are not known yet.

        Args:
            kind: of entries like this one.
            key: of the entry.
            names: of the values.
            make: maps a place in `names` to its value.
            what: is said beside the progress bar.
            lasting: whether a value is true for ever, and so worth keeping.
        """
        try:
            with self._entry(kind, key) as path:
                ledger = Ledger(path / "ledger.sqlite")
                known = ledger.read()
                missing = [place for place, name in enumerate(names) if name not in known]
                self.make_room(VALUE_BYTES * len(missing), path)
                for made in _in_threads(what, make, missing):
                    more = {names[place]: value for place, value in made.items()}
                    ledger.add({name: value for name, value in more.items() if lasting(value)})
                    known |= more
            return [known[name] for name in names]
        except UNUSABLE as error:
            self._complain(error, "pictures are looked at again in every run")
            return [value for made in _in_threads(what, make, range(len(names))) for value in made.values()]

    def pixels(
        self,
        key: str,
        names: Sequence[str],
        decode: Callable[[int], NDArray[np.uint8] | UsageError],
        size: int,
        what: str,
    ) -> Pixels | None:
        """Returns pictures, decoding those that are not known yet.

        Args:
            key: where the pictures come from and what is done to them.
            names: of each picture with its content: another one where the file changes.
            decode: maps places in `names` to pixels (height, width, channels) or to why there are none.
            size: bytes of one picture, about.
            what: is said beside the progress bar.

        Returns:
            None where they do not fit into the cache or onto the disk.

        Raises:
            UsageError: for the first picture that cannot be decoded, with the number of others; the rest is kept.
        """
        try:
            with self._entry("pictures", key) as path:
                return self._pixels(path, names, decode, size, what)
        except UNUSABLE as error:
            self._complain(error, "pictures are decoded again in every epoch")
            return None

    def _pixels(
        self,
        path: Path,
        names: Sequence[str],
        decode: Callable[[int], NDArray[np.uint8] | UsageError],
        size: int,
        what: str,
    ) -> Pixels | None:
        ledger, file = Ledger(path / "ledger.sqlite"), path / "pixels"
        known: dict[str, list[int]] = ledger.read()
        end = _end(known)
        if end > (file.stat().st_size if file.exists() else 0):
            known, end = _emptied(ledger, file)  # somebody cleaned up by hand
        missing = [place for place, name in enumerate(names) if name not in known]
        if not self.make_room(size * len(missing), path):
            if known.keys() <= set(names):
                return None
            known, end = _emptied(ledger, file)  # perhaps most of it are files that have changed since
            missing = list(range(len(names)))
            if not self.make_room(size * len(missing), path):
                return None
        errors: list[UsageError] = []
        for made in _in_threads(what, decode, missing):
            errors += [result for result in made.values() if isinstance(result, UsageError)]
            more = {}
            with file.open("r+b" if file.exists() else "wb") as pixels:
                pixels.seek(end)
                for place, picture in made.items():
                    if isinstance(picture, np.ndarray):
                        more[names[place]] = [end, *picture.shape]
                        pixels.write(picture.tobytes())
                        end += picture.nbytes
                pixels.flush()
                os.fsync(pixels.fileno())
            ledger.add(more)
            known |= more
        if errors:
            more_of_them = f"; {len(errors) - 1} more beside it, which scripts/check_data.py lists"
            raise UsageError(f"{errors[0]}{more_of_them if errors[1:] else ''}")
        places = np.array([known[name][:3] for name in names], np.int64).reshape(-1, 3)
        # Mapped while the lock is held, nobody can take the file away before it is.
        return Pixels(np.memmap(file, np.uint8, "r"), places)

    @contextmanager
    def _entry(self, kind: str, key: str) -> Iterator[Path]:
        """Gives an entry's folder to one process at a time; it counts as used now."""
        path = self.folder / kind / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            path.mkdir(exist_ok=True)
            os.utime(path)
            yield path

    def _complain(self, error: Exception, consequence: str) -> None:
        log.warning("cache=%s: cannot be used (%s); %s", self.folder, error, consequence)


def _end(known: Mapping[str, Sequence[int]]) -> int:
    return max((start + height * width * channels for start, height, width, channels in known.values()), default=0)


def _emptied(ledger: Ledger, file: Path) -> tuple[dict[str, list[int]], int]:
    """Starts an entry anew: a new file, so that who has the old one open goes on reading the old pixels."""
    ledger.clear()
    file.unlink(missing_ok=True)
    return {}, 0


def _measured(path: Path) -> tuple[int, float]:
    """Returns an entry's bytes and when it was used; nothing where another process has just removed it."""
    try:
        return sum(file.stat().st_size for file in path.iterdir()), path.stat().st_mtime
    except FileNotFoundError:
        return 0, 0.0
