"""Texts in tables: CSV, TSV, JSON lines or Parquet, in one file or in one for each split."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tlexp.data.samples import Samples, labelled
from tlexp.data.texts import Texts
from tlexp.errors import UsageError


def text_table(
    root: str | None,
    name: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    text: str = "text",
    label: str = "label",
    classes: Sequence[object] | None = None,
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
        classes: keeps these classes only, in this order.

    Raises:
        UsageError: for a file, format or column that is not there, or a row without text or label.
    """
    if root is None:
        raise UsageError("root=null: a text table needs data.target.root=FILE (data.source.root= for the source)")
    if train is None and (val or test):
        raise UsageError(f"test={test} val={val}: given splits need train= as well, the file of the training split")
    folder = Path(root)
    given = {part: folder / file for part, file in (("train", train), ("val", val), ("test", test)) if file is not None}
    texts: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    for part, file in (given if train is not None else {"train": folder}).items():
        more, theirs = _columns(file, text, label)
        texts, labels, parts = texts + more, labels + theirs, parts + [part] * len(more)
    name = name or Path(train or folder).stem
    return labelled(name, Texts(tuple(texts)), labels, parts if train is not None else None, classes)


def _columns(path: Path, text: str, label: str) -> tuple[list[str], list[str]]:
    table = read_table(path)
    for column in (text, label):
        if column not in table:
            rule = f"its columns are {', '.join(map(str, table.columns))}; set text= and label= of the data set"
            raise UsageError(f"{path}: has no column {column}; {rule}")
    for column in (text, label):
        missing = table[column].isna() | (table[column].astype(str).str.strip() == "")
        if missing.any():
            raise UsageError(f"{path}: row {int(missing.to_numpy().argmax()) + 1} has no {column}; fill or remove it")
    return [str(value) for value in table[text]], [str(value) for value in table[label]]


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table by its ending, values of text files as they are written.

    Raises:
        UsageError: for a file that does not exist, is not readable, or has another ending.
    """
    as_written = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    readers = {
        ".csv": lambda: pd.read_csv(path, **as_written),
        ".tsv": lambda: pd.read_csv(path, sep="\t", **as_written),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix not in readers:
        raise UsageError(f"{path}: unknown ending; give one of {', '.join(readers)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        return readers[path.suffix]()
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path}: not a readable table ({reason})") from error
