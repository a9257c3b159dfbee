"""Labelled images or texts of the Hugging Face hub, or of folders that its library `datasets` reads."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlexp.backbones import hub as network
from tlexp.data.images.decode import ValueRange, check_range
from tlexp.data.images.sources import EncodedImages
from tlexp.data.samples import Samples, Skipped
from tlexp.data.texts import Texts
from tlexp.errors import UsageError

INPUT_COLUMNS = ("image", "img", "text", "sentence")


def hf_dataset(
    hub: str | None = None,
    root: str | None = None,
    name: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    train: str = "train",
    val: str | None = "validation",
    test: str | None = "test",
    input: str | None = None,  # noqa: A002 - the option's name
    label: str = "label",
    group: str | None = None,
    classes: Sequence[object] | None = None,
    value_range: Sequence[float] | None = None,
    on_bad: str = "error",
) -> Samples:
    """Reads images or texts and their labels; images are decoded later.

    Args:
        hub: the data set's name on the hub.
        root: a folder, written by `save_to_disk` or of files that `load_dataset` understands; instead of `hub`.
        name: for reports; None for the last part of either.
        subset: the configuration of a data set that has several.
        revision: a branch, tag or commit on the hub.
        train: the split to train on.
        val: the split to validate on; used only where there is one.
        test: the split to test on; used only where there is one.
        input: the column of the images or texts; None for the first of the usual names.
        label: the column of the classes: numbers with names, or labels as written.
        group: the column of what no split may separate, if there is one.
        classes: keeps these classes only, in this order.
        value_range: black and white of grey images with more than 8 bits, such as [0, 4095]; None for 16 bits.
        on_bad: `error` refuses rows that cannot be read, `skip` leaves them out and lists them.

    Raises:
        UsageError: for data, a split or a column that is not there, or a row that cannot be used.
    """
    if (hub is None) == (root is None):
        raise UsageError(f"hub={hub} root={root}: give the data set's name on the hub or a folder, one of them")
    origin = str(root or hub)
    name = name or Path(origin).stem
    loaded = _load(origin, root is not None, subset, revision)
    if train not in loaded:
        raise UsageError(f"train={train}: {origin} has the splits {', '.join(loaded)}; name yours")
    sets = {part: loaded[split] for part, split in (("train", train), ("val", val), ("test", test)) if split in loaded}
    column = _input_column(origin, sets["train"], input, [label, *([group] if group else [])])
    labels = [value for rows in sets.values() for value in _labels(rows, label)]
    groups = [str(value) for rows in sets.values() for value in rows[group]] if group else None
    splits = [split for split, rows in sets.items() for _ in range(len(rows))] if len(sets) > 1 else None
    inputs, empty = _inputs(origin, list(sets.values()), column, check_range(value_range))
    bad = {row: f"has no {label}, or one outside its classes" for row, value in enumerate(labels) if value is None}
    bad |= dict.fromkeys(empty, f"has no {column}")
    if bad and on_bad != "skip":
        first = min(bad)
        others = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UsageError(f"{origin}: row {first + 1} {bad[first]}; fix or remove it, or set on_bad=skip{others}")
    good = np.array([row for row in range(len(labels)) if row not in bad], np.int64)

    def select(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[row] for row in good]

    skipped = [Skipped(f"{origin}: row {row + 1}", reason) for row, reason in sorted(bad.items())]
    kept_labels = [str(labels[row]) for row in good]
    return Samples.from_labels(
        name, inputs.take(good), kept_labels, select(splits), classes, select(groups), on_bad, skipped
    )


def _load(origin: str, local: bool, subset: str | None, revision: str | None) -> Any:
    """Returns the splits by name; the hub is asked only where it answers."""
    import datasets

    logging.getLogger("datasets").setLevel(logging.ERROR)
    if local and not Path(origin).is_dir():
        raise UsageError(f"root={origin}: no such folder")
    saved = local and any(Path(origin, file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        with network.offline(unless=not local):
            loaded = (
                datasets.load_from_disk(origin) if saved else datasets.load_dataset(origin, subset, revision=revision)
            )
    except Exception as error:  # each of its readers has errors of its own
        reason = network.first_sentence(error)
        remedy = "give another folder" if local else "check the name and the network, or give root=FOLDER"
        raise UsageError(f"{'root' if local else 'hub'}={origin}: cannot be read ({reason}); {remedy}") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _input_column(origin: str, rows: Any, wanted: str | None, others: Sequence[str]) -> str:
    have = ", ".join(rows.column_names)
    for column in (*others, *([wanted] if wanted else [])):
        if column not in rows.column_names:
            raise UsageError(f"{origin}: has no column {column}; its columns are {have}; name yours")
    chosen = wanted or next((column for column in INPUT_COLUMNS if column in rows.column_names), None)
    if chosen is None:
        raise UsageError(f"{origin}: has no column called {', '.join(INPUT_COLUMNS)}; name one of {have} by input=")
    return chosen


def _labels(rows: Any, column: str) -> list[str | None]:
    """Returns the name of each row's class; None where it has none, which data of the hub mark by -1."""
    values, feature = rows[column], rows.features[column]
    if names := getattr(feature, "names", None):
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]
    return [None if value is None or str(value).strip() == "" else str(value) for value in values]


def _inputs(origin: str, sets: list[Any], column: str, value_range: ValueRange) -> tuple[Any, list[int]]:
    """Returns the inputs of all splits, one after the other, and the rows without one."""
    import datasets

    if not isinstance(sets[0].features[column], datasets.Image):
        texts = [value for rows in sets for value in rows[column]]
        empty = [row for row, text in enumerate(texts) if text is None or not str(text).strip()]
        return Texts(tuple(str(text) for text in texts)), empty
    encoded = [rows.cast_column(column, datasets.Image(decode=False)).select_columns([column]) for rows in sets]
    all_rows = datasets.concatenate_datasets(encoded)

    def content(row: int) -> bytes:
        image = all_rows[row][column]
        stored: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return stored

    missing = [row for row, image in enumerate(all_rows[column]) if image is None]
    return EncodedImages(content, np.arange(len(all_rows)), origin, value_range), missing
