"""Data sets of the Hugging Face hub, or of folders that its library `datasets` reads: images or texts with labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlexp.backbones import hub as network
from tlexp.data.images import EncodedImages
from tlexp.data.samples import Samples, Skipped, labelled
from tlexp.data.texts import Texts
from tlexp.errors import UsageError

INPUTS = ("image", "img", "text", "sentence")


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
    on_bad: str = "error",
) -> Samples:
    """Reads images or texts and their labels; images are decoded later.

    Args:
        hub: the data set's name on the hub.
        root: a folder, written by `save_to_disk` or of files that `load_dataset` understands; instead of `hub`.
        name: what reports call it; None for the last part of either.
        subset: the configuration of a data set that has several.
        revision: a branch, tag or commit on the hub.
        train: the split to train on.
        val: the split to validate on; used only where there is one.
        test: the split to test on; used only where there is one.
        input: the column of the images or texts; None for the first of the usual names.
        label: the column of the classes: numbers with names, or labels as they are written.
        group: the column of what must not be parted by a split, if there is one.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses rows that cannot be read, `skip` leaves them out and says so.

    Raises:
        UsageError: for data, a split or a column that is not there, or a row that cannot be used.
    """
    if (hub is None) == (root is None):
        raise UsageError(f"hub={hub} root={root}: give the data set's name on the hub or a folder, one of them")
    place = str(root or hub)
    name = name or Path(place).stem
    loaded = _loaded(place, root is not None, subset, revision)
    if train not in loaded:
        raise UsageError(f"train={train}: {place} has the splits {', '.join(loaded)}; name yours")
    parts = {"train": train, "val": val, "test": test}
    sets = {part: loaded[split] for part, split in parts.items() if split in loaded}
    column = _input_column(place, sets["train"], input, [label, *([group] if group else [])])
    labels: list[str | None] = []
    for part in sets.values():
        labels += _labels(part, label)
    groups = [value for part in sets.values() for value in part[group]] if group else None
    of_part = [part for part, rows in sets.items() for _ in range(len(rows))]
    inputs, empty = _inputs(place, list(sets.values()), column)
    bad = {row: f"has no {label}, or one outside its classes" for row, value in enumerate(labels) if value is None}
    bad |= dict.fromkeys(empty, f"has no {column}")
    if bad and on_bad != "skip":
        first = min(bad)
        more = f"; {len(bad) - 1} more like it" if len(bad) > 1 else ""
        raise UsageError(f"{place}: row {first + 1} {bad[first]}; mend or remove it, or on_bad=skip{more}")
    keep = np.array([row for row in range(len(labels)) if row not in bad], np.int64)

    def kept(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[row] for row in keep]

    skipped = [Skipped(f"{place}: row {row + 1}", reason) for row, reason in sorted(bad.items())]
    given = kept(of_part) if len(sets) > 1 else None
    owners = None if groups is None else [str(value) for value in kept(groups) or ()]
    return labelled(name, inputs.take(keep), kept(labels) or [], given, classes, owners, on_bad, skipped)


def _loaded(place: str, local: bool, subset: str | None, revision: str | None) -> Any:
    """Returns the splits by name; the hub is asked only where it answers."""
    import datasets

    logging.getLogger("datasets").setLevel(logging.ERROR)
    if local and not Path(place).is_dir():
        raise UsageError(f"root={place}: no such folder")
    saved = local and any(Path(place, file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        with network.offline(unless=not local):
            found = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, subset, revision=revision)
    except Exception as error:  # each of its readers has errors of its own
        reason = network.first_sentence(error)
        rule = "give another folder" if local else "check the name and the network, or give root=FOLDER"
        raise UsageError(f"{'root' if local else 'hub'}={place}: cannot be read ({reason}); {rule}") from error
    return found if isinstance(found, dict) else {"train": found}


def _input_column(place: str, rows: Any, wanted: str | None, others: Sequence[str]) -> str:
    have = ", ".join(rows.column_names)
    for column in (*others, *([wanted] if wanted else [])):
        if column not in rows.column_names:
            raise UsageError(f"{place}: has no column {column}; its columns are {have}; name yours")
    found = wanted or next((column for column in INPUTS if column in rows.column_names), None)
    if found is None:
        raise UsageError(f"{place}: has no column called {', '.join(INPUTS)}; name one of {have} by input=")
    return found


def _labels(rows: Any, column: str) -> list[str | None]:
    """Returns the name of each row's class; None where it has none, which the hub's data say by -1."""
    values, feature = rows[column], rows.features[column]
    if names := getattr(feature, "names", None):
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]
    return [None if value is None or str(value).strip() == "" else str(value) for value in values]


def _inputs(place: str, sets: list[Any], column: str) -> tuple[Any, list[int]]:
    """Returns the inputs of all parts, one after the other, and the rows that have none."""
    import datasets

    if not isinstance(sets[0].features[column], datasets.Image):
        texts = [value for rows in sets for value in rows[column]]
        empty = [row for row, text in enumerate(texts) if text is None or not str(text).strip()]
        return Texts(tuple(str(text) for text in texts)), empty
    encoded = [rows.cast_column(column, datasets.Image(decode=False)).select_columns([column]) for rows in sets]
    every = datasets.concatenate_datasets(encoded)

    def content(row: int) -> bytes:
        image = every[row][column]
        stored: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return stored

    missing = [row for row, image in enumerate(every[column]) if image is None]
    return EncodedImages(content, np.arange(len(every)), place), missing
