"""Keys of the files behind data sets and weights: a job or a source's weights are out of date when they change."""

from pathlib import Path
from typing import Any

from tlexp.config.instantiate import build
from tlexp.fingerprint import content_key, digest


def data_keys(node: dict[str, Any]) -> list[str | None]:
    """Returns keys of the files of a data set; none of a folder that the program itself downloads into."""
    if node.get("download"):
        return []
    listed = [_table_key(node)] if "images" in node else []
    return [path_key(node.get("root")), path_key(node.get("folder")), *listed]


def path_key(path: str | None) -> str | None:
    """Returns a key of a file, or of all files in a folder, by name, size and modification time; None for no path."""
    if path is None or not Path(path).is_absolute():  # the name of an option or a network, not a path
        return None
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    stats = ((file, file.stat()) for file in files if file.exists())
    return content_key({str(file): [stat.st_size, stat.st_mtime_ns] for file, stat in stats})


def _table_key(node: dict[str, Any]) -> str | None:
    """Returns a key of the images that a table lists, which may be anywhere; None where it cannot be read."""
    try:
        samples = build("data", node)
    except Exception:  # whatever is wrong is reported where the data are read
        return None
    return digest(*samples.inputs.content_keys())
