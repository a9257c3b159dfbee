"""Images in folders: a folder for each class, in one tree or in one tree for each split."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tlexp.data.images import ImageFiles
from tlexp.data.samples import Samples, labelled
from tlexp.errors import UsageError


def image_folder(
    root: str | None,
    name: str | None = None,
    train: str | None = "train",
    val: str | None = "val",
    test: str | None = "test",
    classes: Sequence[object] | None = None,
) -> Samples:
    """Reads `root/<class>/**` or, where `root/<train>` exists, `root/<split>/<class>/**`; pixels are read later.

    Args:
        root: the folder.
        name: what reports call it; None for the folder's own name.
        train: folder of the training split; None, or one that does not exist, for a tree without given splits.
        val: folder of the validation split; used only where it exists.
        test: folder of the test split; used only where it exists.
        classes: keeps these classes only, in this order.

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
    if "train" not in given or not given["train"].is_dir():
        paths, labels = _tree(folder)
        return labelled(name, ImageFiles(tuple(paths)), labels, None, classes)
    everything: list[tuple[Path, str, str]] = []
    for part, tree in given.items():
        if tree.is_dir():
            everything += [(path, label, part) for path, label in zip(*_tree(tree), strict=True)]
    paths, labels, parts = (list(column) for column in zip(*everything, strict=True)) if everything else ([], [], [])
    return labelled(name, ImageFiles(tuple(paths)), labels, parts, classes)


def _tree(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns the image files below each class folder, in order, hidden ones left out."""
    known = Image.registered_extensions()
    paths: list[Path] = []
    labels: list[str] = []
    for tree in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = (path for path in sorted(tree.rglob("*")) if path.suffix.lower() in known)
        found = [path for path in files if not any(part.startswith(".") for part in path.relative_to(tree).parts)]
        paths += found
        labels += [tree.name] * len(found)
    return paths, labels
