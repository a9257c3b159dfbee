"""Table files with their values as written: CSV, TSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tlexp.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")


def read_table(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> pd.DataFrame:
    """Reads a table by its suffix; values of text files stay as written; rows are numbered from 0.

    Raises:
        UsageError: for a file that does not exist, is not readable, has another suffix or lacks a column.
    """
    readers = {
        ".csv": partial(_separated, path, columns, SEPARATORS, encoding),
        ".tsv": partial(_separated, path, columns, ("\t",), encoding),
        ".jsonl": partial(_json_lines, path, encoding),
        ".parquet": partial(pd.read_parquet, path, dtype_backend="numpy_nullable"),
    }
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: unknown suffix; give one of {', '.join(readers)}")
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
            remedy = f"its columns are {', '.join(map(str, table.columns))}; name yours in the data set's options"
            raise UsageError(f"{path}: has no column {column}; {remedy}")
    return table.reset_index(drop=True)


def _separated(path: Path, columns: Sequence[str], separators: Sequence[str], encoding: str) -> pd.DataFrame:
    """Reads a table by the first separator with which its header has the columns."""
    marked = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig"}.get(encoding.lower(), encoding)
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):  # the byte order mark of spreadsheets
            marked = "utf-16"
    as_written = {"dtype": str, "keep_default_na": False, "encoding": marked}
    for separator in separators:
        head = pd.read_csv(path, sep=separator, nrows=0, encoding=marked)
        if set(columns) <= set(head.columns):
            return _rows(path, separator, as_written)
    return pd.read_csv(path, sep=separators[0], nrows=0, encoding=marked)


def _rows(path: Path, separator: str, as_written: dict[str, Any]) -> pd.DataFrame:
    """Reads the rows of a table, which pandas would shift where they have more fields than the header.

    In tab-separated tables a quotation mark is often an ordinary character: it quotes only where one closes a field.
    """
    if separator == "\t":
        with suppress(ValueError):
            plain = pd.read_csv(path, sep=separator, quoting=csv.QUOTE_NONE, **as_written)
            cells = plain.astype(str).apply(lambda column: column.str.fullmatch('".*"')).to_numpy()
            if isinstance(plain.index, pd.RangeIndex) and not cells.any():
                return plain
    table = pd.read_csv(path, sep=separator, **as_written)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"rows have more fields than the header; quote texts that contain a {separator!r}")
    return table


def _json_lines(path: Path, encoding: str) -> pd.DataFrame:
    """Reads one object per line; values keep their type, where pandas would turn `"1"` into 1 and 1 into 1.0."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig" if encoding == "utf-8" else encoding).split("\n")):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {number + 1}: {error}") from None
    return pd.DataFrame(rows, dtype=object)
