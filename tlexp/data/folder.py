"""Images in folders: a folder for each class, in one tree or in one tree for each split."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tlexp.data.images import ENDINGS, ImageFiles
from tlexp.data.samples import Samples, labelled
from tlexp.errors import UsageError

SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini", "ehthumbs.db")


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
        name: what reports call it; None for the folder's own name.
        train: folder of the training split; None, or one that does not exist, for a tree without given splits.
        val: folder of the validation split; used only where it exists.
        test: folder of the test split; used only where it exists.
        classes: keeps these classes only, in this order.
        on_bad: `error` refuses images that cannot be read, `skip` leaves them out and says so.

    Raises:
        UsageError: for a folder that does not exist or holds no classes with images.
    """
    if root is None:
        raise UsageError("root=null: an image folder needs data.target.root=FOLDER (data.source.root= for the source)")
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"root={root}: no such folder")
    name = name or folder.resolve().name
    given = {part: folder / sub for part, sub in (("train", train), ("val", val), ("test", test)) if sub is not None}
    split = "train" in given and given["train"].is_dir()
    trees = {part: tree for part, tree in given.items() if tree.is_dir()} if split else {"train": folder}
    files: list[Path] = []
    labels: list[str] = []
    parts: list[str] = []
    left_out: Counter[str] = Counter()
    for part, tree in trees.items():
        found = _tree(tree, left_out)
        files += [path for path, _ in found]
        labels += [label for _, label in found]
        parts += [part] * len(found)
    notes = [f"left out {', '.join(f'{what}: {count:,}' for what, count in left_out.items())}"] if left_out else []
    images = ImageFiles(tuple(files), str(folder))
    return labelled(name, images, labels, parts if split else None, classes, on_bad=on_bad, notes=notes)


def _tree(folder: Path, left_out: Counter[str]) -> list[tuple[Path, str]]:
    """Returns the image files below each class folder with its name, in order, and counts everything else."""
    found: list[tuple[Path, str]] = []
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            left_out["hidden files and folders"] += 1
        elif not entry.is_dir():
            left_out["files beside the class folders"] += 1
        else:
            images = _images(entry, left_out)
            left_out.update({f"class folder without images ({entry.name})": 1} if not images else {})
            found += [(path, entry.name) for path in images]
    return found


def _images(folder: Path, left_out: Counter[str]) -> list[Path]:
    images: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        visible = [] if real in seen else [name for name in folders if not _hidden(name)]
        if real in seen:  # a link back to where it lies in
            folders.clear()
            continue
        seen.add(real)
        left_out.update(
            {"hidden files and folders": len(folders) - len(visible)} if len(folders) > len(visible) else {}
        )
        folders[:] = visible
        for name in files:
            if _hidden(name):
                left_out["hidden files and folders"] += 1
            elif Path(name).suffix.lower() not in ENDINGS:
                left_out["files with other endings"] += 1
            else:
                images.append(Path(place, name))
    return sorted(images)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: this folder cannot be read ({error.strerror}); allow it, or move it away")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM
