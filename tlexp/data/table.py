"""Examples in tables: CSV, TSV, JSON lines or Parquet, in one file or in one for each split."""

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlexp.data.images import ImageFiles
from tlexp.data.samples import PARTS, Samples, Skipped, labelled
from tlexp.data.texts import Texts
from tlexp.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")
# What people write for the three parts, in small letters.
WRITTEN = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def text_table(
    root: str | None,
    name: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    text: str = "text",
    label: str = "label",
    split: str | None = None,
    group: str | None = None,
    classes: Sequence[object] | None = None,
    encoding: str = "utf-8",
    on_bad: str = "error",
) -> Samples:
    """Reads texts and labels, both as they are written: `007`, `NA` and `None` are labels like any other.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: what reports call it; None for the (training) file's name.
        train: file of the training split, inside `root`.
        val: file of the validation split, if there is one.
        test: file of the test split, if there is one.
        text: the column of the texts.
        label: the column of the classes.
        split: the column that says `train`, `val` or `test`, if there is one.
        group: the column of what must not be parted by a split, such as an author, if there is one.
        classes: keeps these classes only, in this order.
        encoding: of the letters in a text file.
        on_bad: `error` refuses rows without a text or label, `skip` leaves them out and says so.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = _read("text table", root, (train, val, test), text, label, split, group, encoding, on_bad)
    name = name or Path(train or root or "").stem
    texts = Texts(tuple(rows.inputs), tuple(rows.wheres))
    return labelled(name, texts, rows.labels, rows.given, classes, rows.grouped, on_bad, rows.skipped)


def image_table(
    root: str | None,
    name: str | None = None,
    images: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    path: str = "path",
    label: str = "label",
    split: str | None = None,
    group: str | None = None,
    classes: Sequence[object] | None = None,
    encoding: str = "utf-8",
    on_bad: str = "error",
) -> Samples:
    """Reads paths of images and labels as they are written; pixels are read later.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: what reports call it; None for the (training) file's name.
        images: the folder that paths start from; None for the table's own.
        train: file of the training split, inside `root`.
        val: file of the validation split, if there is one.
        test: file of the test split, if there is one.
        path: the column of the paths.
        label: the column of the classes.
        split: the column that says `train`, `val` or `test`, if there is one.
        group: the column of what must not be parted by a split, such as a patient, if there is one.
        classes: keeps these classes only, in this order.
        encoding: of the letters in a text file.
        on_bad: `error` refuses rows and images that cannot be read, `skip` leaves them out and says so.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = _read("image table", root, (train, val, test), path, label, split, group, encoding, on_bad)
    name = name or Path(train or root or "").stem
    own = Path(root or "") if train else Path(root or "").parent
    folder = Path(images) if images else own
    files = ImageFiles(tuple(folder / written for written in rows.inputs), str(folder))
    return labelled(name, files, rows.labels, rows.given, classes, rows.grouped, on_bad, rows.skipped)


@dataclass
class Rows:
    """The columns of one or several tables, and what was left out of them."""

    inputs: list[str] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def given(self) -> list[str] | None:
        """The split of each row, if the data bring any."""
        return self.parts or None

    @property
    def grouped(self) -> list[str] | None:
        """The group of each row, if the data bring any."""
        return self.groups or None


def _read(
    what: str,
    root: str | None,
    files: tuple[str | None, str | None, str | None],
    first: str,
    label: str,
    split: str | None,
    group: str | None,
    encoding: str,
    on_bad: str,
) -> Rows:
    if root is None:
        raise UsageError(f"root=null: a {what} needs data.target.root=FILE (data.source.root= for the source)")
    train, val, test = files
    if train is None and (val or test):
        raise UsageError(f"test={test} val={val}: given splits need train= as well, the file of the training split")
    if train is not None and split is not None:
        raise UsageError(f"split={split} train={train}: give a column or a file for each split, not both")
    folder = Path(root)
    given = {part: folder / file for part, file in zip(PARTS, files, strict=True) if file is not None}
    rows = Rows()
    for part, file in (given or {"": folder}).items():
        table = read_table(file, [first, label, *filter(None, (split, group))], encoding)
        bad = _unusable(table, first, label, split, group)
        if bad and on_bad != "skip":
            more = f"; {len(bad) - 1} more like it" if len(bad) > 1 else ""
            place, reason = next(iter(bad.items()))
            raise UsageError(f"{file}: row {place + 1} {reason}; mend or remove it, or on_bad=skip{more}")
        rows.skipped += [Skipped(f"{file}: row {place + 1}", reason) for place, reason in bad.items()]
        table = table.drop(index=list(bad))
        rows.inputs += [str(value) for value in table[first]]
        rows.wheres += [f"{file.name}: row {place + 1}" for place in table.index]
        rows.labels += [str(value) for value in table[label]]
        rows.groups += [str(value) for value in table[group]] if group else []
        rows.parts += [_part(value) for value in table[split]] if split else [part] * len(table) if part else []
    return rows


def _part(written: object) -> str:
    small = str(written).strip().lower()
    return WRITTEN.get(small, small)


def _unusable(table: pd.DataFrame, first: str, label: str, split: str | None, group: str | None) -> dict[int, str]:
    """Returns why a row cannot be used, by its number from 0."""
    bad: dict[int, str] = {}
    for column in filter(None, (first, label, split, group)):
        missing = table[column].isna() | (table[column].astype(str).str.strip() == "")
        for place in table.index[missing.to_numpy(dtype=bool)]:
            bad.setdefault(int(place), f"has no {column}")
    for column in (first, label):
        for place, value in table[column].items():
            if isinstance(value, list | tuple | dict | set | bytes | np.ndarray):
                bad[int(place)] = f"holds a {type(value).__name__} as its {column}, where one value is needed"
    for place, written in table[split].items() if split else ():
        if _part(written) not in PARTS:
            bad.setdefault(int(place), f"has {split}={written}, which is none of {', '.join(PARTS)}")
    return dict(sorted(bad.items()))


def read_table(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> pd.DataFrame:
    """Reads a table by its ending, values of text files as they are written; rows are numbered from 0.

    Raises:
        UsageError: for a file that does not exist, is not readable, has another ending or not the columns.
    """
    readers = {
        ".csv": partial(_separated, path, columns, SEPARATORS, encoding),
        ".tsv": partial(_separated, path, columns, ("\t",), encoding),
        ".jsonl": partial(_json_lines, path, encoding),
        ".parquet": partial(pd.read_parquet, path, dtype_backend="numpy_nullable"),
    }
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: unknown ending; give one of {', '.join(readers)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        table = readers[path.suffix.lower()]()
    except UnicodeError as error:
        raise UsageError(f"{path}: is not written in {encoding} ({error}); save it so, or set encoding=") from error
    except LookupError as error:
        raise UsageError(f"encoding={encoding}: {error}; utf-8 and latin-1 are common ones") from error
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path}: not a readable table ({reason})") from error
    for column in columns:
        if column not in table:
            rule = f"its columns are {', '.join(map(str, table.columns))}; name yours in the data set's options"
            raise UsageError(f"{path}: has no column {column}; {rule}")
    return table.reset_index(drop=True)


def _separated(path: Path, columns: Sequence[str], separators: Sequence[str], encoding: str) -> pd.DataFrame:
    """Reads a table whose separator is the first under which its head has the columns."""
    marked = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig"}.get(encoding.lower(), encoding)
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):  # the mark that spreadsheets begin Unicode text with
            marked = "utf-16"
    as_written = {"dtype": str, "keep_default_na": False, "encoding": marked}
    for separator in separators:
        head = pd.read_csv(path, sep=separator, nrows=0, encoding=marked)
        if set(columns) <= set(head.columns):
            return _rows(path, separator, as_written)
    return pd.read_csv(path, sep=separators[0], nrows=0, encoding=marked)


def _rows(path: Path, separator: str, as_written: dict[str, Any]) -> pd.DataFrame:
    """Reads the rows of a table, which pandas would shift to the left where they have more fields than the head.

    In tables with tabs a quotation mark is often just that: there it opens a quotation only where one is closed.
    """
    if separator == "\t":
        with suppress(ValueError):
            plain = pd.read_csv(path, sep=separator, quoting=csv.QUOTE_NONE, **as_written)
            cells = plain.astype(str).apply(lambda column: column.str.fullmatch('".*"')).to_numpy()
            if isinstance(plain.index, pd.RangeIndex) and not cells.any():
                return plain
    table = pd.read_csv(path, sep=separator, **as_written)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(
            f"rows have more fields than the head; put texts that hold a {separator!r} into quotation marks"
        )
    return table


def _json_lines(path: Path, encoding: str) -> pd.DataFrame:
    """Reads an object a line; values stay what they are, where pandas would make 1 of `"1"` and 1.0 of 1."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig" if encoding == "utf-8" else encoding).split("\n")):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {number + 1}: {error}") from None
    return pd.DataFrame(rows, dtype=object)
