"""Images in folders: a folder for each class, in one tree or in one tree for each split."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tlexp.data.images.decode import check_range
from tlexp.data.images.sources import IMAGE_SUFFIXES, ImageFiles
from tlexp.data.samples import Samples, Skipped, standard_split
from tlexp.errors import UsageError
from tlexp.file_names import as_text

# A name with one of these words is that of a split under another name, such as seg_train.
LIKE_A_SPLIT = r"(^|[^a-z])(train|training|val|valid|validation|dev|test|testing)([^a-z]|$)"
SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini", "ehthumbs.db")


def image_folder(
    root: str | None,
    name: str | None = None,
    train: str | None = "train",
    val: str | None = "val",
    test: str | None = "test",
    classes: Sequence[object] | None = None,
    value_range: Sequence[float] | None = None,
    on_bad: str = "error",
) -> Samples:
    """Reads `root/<class>/**` or, where `root/<train>` exists, `root/<split>/<class>/**`; pixels are read later.

    Args:
        root: the folder.
        name: for reports; None for the folder's own name.
        train: folder of the training split; None, or a folder that does not exist, for data without given splits. The
            usual names of a split stand for each other, in any case: `Train` and `training` are found as `train`.
        val: folder of the validation split; used only where it exists.
        test: folder of the test split; used only where it exists.
        classes: keeps these classes only, in this order.
        value_range: black and white of grey images with more than 8 bits, such as [0, 4095]; None for 16 bits.
        on_bad: `error` refuses images that cannot be read, `skip` leaves them out and lists them.

    Raises:
        UsageError: for a folder that does not exist, holds no classes with images, or holds a class without any
            (with `on_bad=skip` that class is left out); where the classes are splits under other names, or the data
            lie one level deeper.
    """
    if root is None:
        raise UsageError("root=null: an image folder needs data.target.root=FOLDER (data.source.root= for the source)")
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"root={root}: no such folder")
    name = name or folder.resolve().name
    given = {split: sub for split, sub in (("train", train), ("val", val), ("test", test)) if sub is not None}
    found = {split: tree for split, sub in given.items() if (tree := _find(folder, sub))}
    trees = found if "train" in found else {"train": folder}
    wanted = {str(name) for name in classes or ()}
    empty: list[Skipped] = []
    files: list[Path] = []
    labels: list[str] = []
    splits: list[str] = []
    ignored: Counter[str] = Counter()
    if "train" in found:
        rest = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _hidden(entry.name)]
        ignored.update(
            {f"folder {as_text(entry.name)} beside the splits": 1 for entry in rest if entry not in found.values()}
        )
    else:
        _check_classes(folder)
    for split, tree in trees.items():
        labelled_files, without_images = _tree(tree, ignored)
        empty += [skipped for skipped in without_images if not classes or Path(skipped.location).name in wanted]
        files += [path for path, _ in labelled_files]
        labels += [label for _, label in labelled_files]
        splits += [split] * len(labelled_files)
    if empty and files and on_bad == "error":
        remedy = "remove the folder, or set on_bad=skip to leave the class out"
        raise UsageError(f"{empty[0].location}: {empty[0].reason}; {remedy}")
    notes = [f"ignored {', '.join(f'{what}: {count:,}' for what, count in ignored.items())}"] if ignored else []
    images = ImageFiles(tuple(files), str(folder), check_range(value_range))
    given_splits = splits if "train" in found else None
    return Samples.from_labels(name, images, labels, given_splits, classes, on_bad=on_bad, skipped=empty, notes=notes)


def _find(folder: Path, name: str) -> Path | None:
    """Returns the folder of a split: the one of this name, or else of another usual name of the same split.

    Raises:
        UsageError: where several could be meant.
    """
    if (folder / name).is_dir():
        return folder / name
    same = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and standard_split(path.name) == standard_split(name)
    ]
    if len(same) > 1:
        names = " and ".join(as_text(path.name) for path in same)
        raise UsageError(f"{folder}: {names} are both names of the {name} split; rename or remove one of them")
    return same[0] if same else None


def _check_classes(folder: Path) -> None:
    """Checks that the folders are those of classes.

    Raises:
        UsageError: where they look like splits, or where there is one that holds the classes.
    """
    names = [as_text(path.name) for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path.name)]
    if names and all(re.search(LIKE_A_SPLIT, name, re.IGNORECASE) for name in names):
        remedy = "name them, such as data.target.train=FOLDER data.target.test=FOLDER"
        raise UsageError(f"{folder}: the folders {', '.join(names[:5])} look like splits rather than classes; {remedy}")
    if len(names) == 1:
        inner = folder / names[0]
        if sum(path.is_dir() and not _hidden(path.name) for path in inner.iterdir()) > 1:
            raise UsageError(f"root={folder}: holds the one folder {names[0]}; give root={inner}")


def _tree(folder: Path, ignored: Counter[str]) -> tuple[list[tuple[Path, str]], list[Skipped]]:
    """Returns the image files below each class folder with its name, in order, and the class folders without any."""
    labelled_files: list[tuple[Path, str]] = []
    empty: list[Skipped] = []
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            ignored["hidden files and folders"] += 1
        elif not entry.is_dir():
            ignored["files outside the class folders"] += 1
        else:
            images = _images(entry, ignored)
            empty += [] if images else [Skipped(as_text(entry), "holds no images of this class")]
            labelled_files += [(path, as_text(entry.name)) for path in images]
    return labelled_files, empty


def _images(folder: Path, ignored: Counter[str]) -> list[Path]:
    images: list[Path] = []
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(path)
        visible = [] if real in seen else [name for name in folders if not _hidden(name)]
        if real in seen:  # a link to one of its own parents
            folders.clear()
            continue
        seen.add(real)
        ignored.update({"hidden files and folders": len(folders) - len(visible)} if len(folders) > len(visible) else {})
        folders[:] = visible
        for name in files:
            if _hidden(name):
                ignored["hidden files and folders"] += 1
            elif Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                ignored["files with other suffixes"] += 1
            else:
                images.append(Path(path, name))
    return sorted(images)


def _refuse(error: OSError) -> None:
    raise UsageError(
        f"{as_text(error.filename)}: this folder cannot be read ({error.strerror}); change its permissions or remove it"
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FILES
