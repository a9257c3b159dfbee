"""Examples in tables, texts or paths of images, in one file or in one for each split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlexp.data.images import ImageFiles
from tlexp.data.samples import PARTS, Samples, Skipped, labelled
from tlexp.data.tabular import read_table
from tlexp.data.texts import Texts
from tlexp.errors import UsageError

# What people write for the three parts, in small letters.
WRITTEN = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def text_table(
    root: str | None,
    name: str | None = None,
    text: str = "text",
    classes: Sequence[object] | None = None,
    on_bad: str = "error",
    **options: Any,
) -> Samples:
    """Reads texts and labels, both as they are written: `007`, `NA` and `None` are labels like any other.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: what reports call it; None for the (training) file's name.
        text: the column of the texts.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses rows without a text or label, `skip` leaves them out and says so.
        options: files, columns and encoding, see `read_rows`.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = read_rows("text table", root, text, on_bad, **options)
    texts = Texts(tuple(rows.inputs), tuple(rows.wheres))
    return labelled(name or rows.name, texts, rows.labels, rows.given, classes, rows.grouped, on_bad, rows.skipped)


def image_table(
    root: str | None,
    name: str | None = None,
    images: str | None = None,
    path: str = "path",
    classes: Sequence[object] | None = None,
    on_bad: str = "error",
    **options: Any,
) -> Samples:
    """Reads paths of images and labels as they are written; pixels are read later.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: what reports call it; None for the (training) file's name.
        images: the folder that paths start from; None for the table's own.
        path: the column of the paths.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses rows and images that cannot be read, `skip` leaves them out and says so.
        options: files, columns and encoding, see `read_rows`.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = read_rows("image table", root, path, on_bad, **options)
    folder = Path(images) if images else rows.folder
    files = ImageFiles(tuple(folder / written for written in rows.inputs), str(folder))
    return labelled(name or rows.name, files, rows.labels, rows.given, classes, rows.grouped, on_bad, rows.skipped)


@dataclass
class Rows:
    """The columns of one or several tables, and what was left out of them.

    Attributes:
        name: of the (training) file.
        folder: that it lies in.
    """

    name: str
    folder: Path
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


def read_rows(
    what: str,
    root: str | None,
    first: str,
    on_bad: str,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    label: str = "label",
    split: str | None = None,
    group: str | None = None,
    encoding: str = "utf-8",
) -> Rows:
    """Reads what tables of texts and of images share.

    Args:
        what: the kind of table, for messages.
        root: one file, or the folder of the files of `train`, `val` and `test`.
        first: the column of the inputs.
        on_bad: `error` or `skip`.
        train: file of the training split, inside `root`.
        val: file of the validation split, if there is one.
        test: file of the test split, if there is one.
        label: the column of the classes.
        split: the column that says `train`, `val` or `test`, if there is one.
        group: the column of what no split may part, such as a patient or an author, if there is one.
        encoding: of the letters in a text file.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    if root is None:
        raise UsageError(f"root=null: a {what} needs data.target.root=FILE (data.source.root= for the source)")
    if train is None and (val or test):
        raise UsageError(f"test={test} val={val}: given splits need train= as well, the file of the training split")
    if train is not None and split is not None:
        raise UsageError(f"split={split} train={train}: give a column or a file for each split, not both")
    folder = Path(root)
    given = {part: folder / file for part, file in zip(PARTS, (train, val, test), strict=True) if file is not None}
    rows = Rows(Path(train or root).stem, folder if train else folder.parent)
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
