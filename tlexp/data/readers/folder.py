"""Images in folders: a folder for each class, in one tree or in one tree for each split."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tlexp.data.images.sources import IMAGE_SUFFIXES, ImageFiles
from tlexp.data.samples import Samples
from tlexp.errors import UsageError

SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini", "ehthumbs.db")


def image_folder(
    root: str | None,
    name: str | None = None,
    train: str | None = "train",
    val: str | None = "val",
    test: str | None = "test",
    classes: Sequence[object] | None = None,
    on_bad: str = "error",
) -> Samples:
    """Reads `root/<class>/**` or, where `root/<train>` exists, `root/<split>/<class>/**`; pixels are read later.

    Args:
        root: the folder.
        name: for reports; None for the folder's own name.
        train: folder of the training split; None, or a folder that does not exist, for data without given splits.
        val: folder of the validation split; used only where it exists.
        test: folder of the test split; used only where it exists.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses images that cannot be read, `skip` leaves them out and lists them.

    Raises:
        UsageError: for a folder that does not exist or holds no classes with images.
    """
    if root is None:
        raise UsageError("root=null: an image folder needs data.target.root=FOLDER (data.source.root= for the source)")
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"root={root}: no such folder")
    name = name or folder.resolve().name
    given = {split: folder / sub for split, sub in (("train", train), ("val", val), ("test", test)) if sub is not None}
    has_splits = "train" in given and given["train"].is_dir()
    trees = {split: tree for split, tree in given.items() if tree.is_dir()} if has_splits else {"train": folder}
    files: list[Path] = []
    labels: list[str] = []
    splits: list[str] = []
    ignored: Counter[str] = Counter()
    for split, tree in trees.items():
        labelled_files = _tree(tree, ignored)
        files += [path for path, _ in labelled_files]
        labels += [label for _, label in labelled_files]
        splits += [split] * len(labelled_files)
    notes = [f"ignored {', '.join(f'{what}: {count:,}' for what, count in ignored.items())}"] if ignored else []
    images = ImageFiles(tuple(files), str(folder))
    given_splits = splits if has_splits else None
    return Samples.from_labels(name, images, labels, given_splits, classes, on_bad=on_bad, notes=notes)


def _tree(folder: Path, ignored: Counter[str]) -> list[tuple[Path, str]]:
    """Returns the image files below each class folder with its name, in order, and counts everything else."""
    labelled_files: list[tuple[Path, str]] = []
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            ignored["hidden files and folders"] += 1
        elif not entry.is_dir():
            ignored["files outside the class folders"] += 1
        else:
            images = _images(entry, ignored)
            ignored.update({f"class folder without images ({entry.name})": 1} if not images else {})
            labelled_files += [(path, entry.name) for path in images]
    return labelled_files


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
        f"{error.filename}: this folder cannot be read ({error.strerror}); change its permissions or remove it"
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FILES
