"""Tables of texts or of image paths, in one file or in one file for each split."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlexp.data.images.decode import check_range
from tlexp.data.images.sources import ImageFiles
from tlexp.data.readers.table_files import read_table
from tlexp.data.samples import SPLITS, Inputs, Samples, Skipped, standard_split
from tlexp.data.texts import Texts
from tlexp.errors import UsageError

HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def text_table(
    root: str | None,
    name: str | None = None,
    text: str = "text",
    classes: Sequence[object] | None = None,
    on_bad: str = "error",
    **options: Any,
) -> Samples:
    """Reads texts and labels, both as written: `007`, `NA` and `None` are labels like any other.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: for reports; None for the (training) file's name.
        text: the column of the texts.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses rows without a text or label, `skip` leaves them out and lists them.
        options: files, columns and encoding, see `read_rows`.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = read_rows("text table", root, text, on_bad, **options)
    texts = Texts(tuple(rows.inputs), tuple(rows.locations))
    return rows.samples(name, texts, classes, on_bad)


def image_table(
    root: str | None,
    name: str | None = None,
    images: str | None = None,
    path: str = "path",
    classes: Sequence[object] | None = None,
    value_range: Sequence[float] | None = None,
    on_bad: str = "error",
    **options: Any,
) -> Samples:
    """Reads image paths and labels as written; pixels are read later.

    Args:
        root: one file, or the folder of the files of `train`, `val` and `test`.
        name: for reports; None for the (training) file's name.
        images: the folder that paths are relative to; None for the table's own.
        path: the column of the paths.
        classes: keeps these classes only, in this order.
        value_range: black and white of grey images with more than 8 bits, such as [0, 4095]; None for 16 bits.
        on_bad: `error` refuses rows and images that cannot be read, `skip` leaves them out and lists them.
        options: files, columns and encoding, see `read_rows`.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    rows = read_rows("image table", root, path, on_bad, **options)
    folder = Path(images) if images else rows.folder
    files = ImageFiles(tuple(folder / path for path in rows.inputs), str(folder), check_range(value_range))
    return rows.samples(name, files, classes, on_bad)


@dataclass
class Rows:
    """The columns of one or several tables, and the rows that were left out.

    Attributes:
        name: of the (training) file.
        folder: that it lies in.
    """

    name: str
    folder: Path
    inputs: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def samples(self, name: str | None, inputs: Inputs, classes: Sequence[object] | None, on_bad: str) -> Samples:
        """Returns the rows as samples with the given inputs."""
        splits, groups = self.splits or None, self.groups or None
        return Samples.from_labels(
            name or self.name, inputs, self.labels, splits, classes, groups, on_bad, self.skipped
        )


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
    """Reads what tables of texts and of images have in common.

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
        group: the column of what no split may separate, such as a patient or an author, if there is one.
        encoding: of a text file.

    Raises:
        UsageError: for a file, format or column that is not there, or a row that cannot be used.
    """
    if root is None:
        raise UsageError(f"root=null: a {what} needs data.target.root=FILE (data.source.root= for the source)")
    if train is None and (val or test):
        raise UsageError(f"test={test} val={val}: given splits need train= as well, the file of the training split")
    if train is not None and split is not None:
        raise UsageError(f"split={split} train={train}: give a column or one file per split, not both")
    folder = Path(root)
    given = {name: folder / file for name, file in zip(SPLITS, (train, val, test), strict=True) if file is not None}
    rows = Rows(Path(train or root).stem, folder if train else folder.parent)
    for split_name, file in (given or {"": folder}).items():
        table = read_table(file, [first, label, *filter(None, (split, group))], encoding)
        bad = _unusable(table, first, label, split, group)
        if bad and on_bad != "skip":
            others = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
            index, reason = next(iter(bad.items()))
            raise UsageError(f"{file}: row {index + 1} {reason}; fix or remove it, or set on_bad=skip{others}")
        rows.skipped += [Skipped(f"{file}: row {index + 1}", reason) for index, reason in bad.items()]
        table = table.drop(index=list(bad))
        rows.inputs += [str(value) for value in table[first]]
        rows.locations += [f"{file.name}: row {index + 1}" for index in table.index]
        rows.labels += [str(value) for value in table[label]]
        rows.groups += [str(value) for value in table[group]] if group else []
        if split:
            rows.splits += [standard_split(str(value).strip()) for value in table[split]]
        elif split_name:
            rows.splits += [split_name] * len(table)
    return rows


def _unusable(table: pd.DataFrame, first: str, label: str, split: str | None, group: str | None) -> dict[int, str]:
    """Returns why rows cannot be used, by their index."""
    bad: dict[int, str] = {}
    for column in filter(None, (first, label, split, group)):
        for (index, value), missing in zip(table[column].items(), table[column].isna(), strict=True):
            if missing or not str(value).strip():
                bad.setdefault(int(index), f"has no {column}")
    for column in (first, label):
        for index, value in table[column].items():
            if isinstance(value, list | tuple | dict | set | bytes | np.ndarray):
                bad[int(index)] = f"holds a {type(value).__name__} as its {column}, where one value is needed"
            elif HALF_CHARACTER.search(str(value)):  # which JSON can write, and no encoding
                bad[int(index)] = f"holds half of a surrogate pair in its {column}, which is no character"
    for index, value in table[split].items() if split else ():
        if standard_split(str(value).strip()) not in SPLITS:
            bad.setdefault(int(index), f"has {split}={value}, which is none of {', '.join(SPLITS)}")
    return dict(sorted(bad.items()))
