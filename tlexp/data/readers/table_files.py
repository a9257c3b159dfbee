"""Table files with their values as written: CSV, TSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from tlexp.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")


def read_table(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> pd.DataFrame:
    """Reads a table by its suffix; values of text files stay as written; rows are numbered from 0.

    Args:
        path: the file.
        columns: that it must have, the labels' second.
        encoding: of a text file.

    Raises:
        UsageError: for a file that does not exist, is not readable, has another suffix, lacks a column or has it twice.
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
    except (ValueError, OSError, csv.Error) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path}: not a readable table ({reason})") from error
    for column in columns:
        if column not in table:
            names = shorten(", ".join(map(str, table.columns)), 300)
            remedy = f"its columns are {names}; name yours in the data set's options"
            raise UsageError(f"{path}: has no column {column}; {remedy}")
        if list(table.columns).count(column) > 1:
            raise UsageError(f"{path}: has several columns {column}; rename those that are not meant")
    return table.reset_index(drop=True)


def _separated(path: Path, columns: Sequence[str], separators: Sequence[str], encoding: str) -> pd.DataFrame:
    """Reads a table by the first separator with which its header has the columns."""
    marked = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig"}.get(encoding.lower(), encoding)
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):  # the byte order mark of spreadsheets
            marked = "utf-16"
    with path.open(encoding=marked, newline="") as stream:
        lines = list(stream)
    while lines and not lines[0].strip():
        del lines[0]
    if not lines:
        raise ValueError("it has no header")
    with _fields_of_any_size():
        headers = {separator: next(csv.reader(lines, delimiter=separator)) for separator in separators}
        for separator, header in headers.items():
            if set(columns) <= set(header):
                return _parsed(lines, separator, header.index(columns[1]))
    return pd.DataFrame(columns=headers[separators[0]])


def _parsed(lines: Sequence[str], separator: str, label: int) -> pd.DataFrame:
    """Reads rows by the first way of quoting that fits all of them.

    In tab-separated tables a quotation mark is often an ordinary character: it quotes only where one closes a field.
    Inside a quoted field it is doubled, or in some programs preceded by a backslash.
    """
    if separator == "\t":
        with suppress(ValueError):
            plain = _read(lines, separator, label, quoting=csv.QUOTE_NONE)
            closed = plain.astype(str).apply(lambda column: column.str.fullmatch('".*"')).to_numpy()
            if not closed.any():
                return plain
    try:
        return _read(lines, separator, label, strict=True)
    except ValueError:
        if any('\\"' in line for line in lines):
            with suppress(ValueError):
                return _read(lines, separator, label, strict=True, escapechar="\\")
        raise


def _read(lines: Sequence[str], separator: str, label: int, **options: Any) -> pd.DataFrame:
    """Reads rows in one way of quoting, filling short ones with None.

    Raises:
        ValueError: for a row that does not fit, by its number, and for one into which a quotation mark that is not
            closed has taken others.
    """
    quotation = 'has a quotation mark that is not closed, or not doubled inside a quotation; write "" there'
    reader = csv.reader(lines, delimiter=separator, **options)
    header = next(reader)
    rows: list[list[str | None]] = []
    over_lines: list[tuple[int, Sequence[str]]] = []
    while True:
        start = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            raise ValueError(f"row {len(rows) + 1} {quotation}") from None
        if len(row) > len(header):
            reason = f"has {len(row)} fields where the header has {len(header)}"
            raise ValueError(f"row {len(rows) + 1} {reason}; quote texts that contain a {separator!r}")
        if any(not field.isspace() for field in row if field) or len(row) > 1:
            rows.append(row + [None] * (len(header) - len(row)))
            if reader.line_num - start > 1:
                over_lines.append((len(rows) - 1, lines[start : reader.line_num]))
    own = {index for index, _ in over_lines}
    known = {row[label] for index, row in enumerate(rows) if index not in own}
    for index, extent in over_lines:
        if _holds_rows(rows[index], extent, separator, label, known):
            raise ValueError(f"row {index + 1} {quotation}")
    return pd.DataFrame(rows, columns=header, dtype=object)


def _holds_rows(
    row: Sequence[str | None], extent: Sequence[str], separator: str, label: int, known: Collection[str | None]
) -> bool:
    """Returns whether all lines inside a row's quotation would be rows by themselves, with labels that others have.

    Args:
        row: as it was read.
        extent: the lines of the file that it spans.
        separator: of fields.
        label: the column of the labels.
        known: labels of other rows.
    """
    quoted = next((index for index, field in enumerate(row) if field and len(field.splitlines()) > 1), len(row))
    # The label of the first line is inside the quotation if it comes after its start, that of the last line before.
    inside = [*(extent[:1] if label > quoted else ()), *extent[1:-1], *(extent[-1:] if label < quoted else ())]
    fields = [next(csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE), []) for line in inside]
    return bool(inside) and all(len(f) == len(row) and f[label].strip('"') in known for f in fields)


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lifts the module's limit of 128 KiB for a field, which long documents exceed."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _json_lines(path: Path, encoding: str) -> pd.DataFrame:
    """Reads one object per line; values keep their type, where pandas would turn `"1"` into 1 and 1 into 1.0."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig" if encoding == "utf-8" else encoding).split("\n")):
        if line.strip():
            try:
                rows.append(dict(json.loads(line, object_pairs_hook=_distinct)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {number + 1}: {error}") from None
    return pd.DataFrame(rows, dtype=object)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON, which would keep the last of several values of one key."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has {next(name for name in names if names.count(name) > 1)} twice")
    return content
